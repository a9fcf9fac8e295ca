// The layers of a model, with the parameters that its modules hold.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../launch/lookups.h"
#include "layers.h"

namespace pytorch_ext::train {

namespace py = pybind11;

// A parameter of a module, and where the module keeps it.
struct Slot {
  py::object module_parameters;  // the dict
  py::str key;
  std::string name;  // as in state_dict()
  py::object object;
  Weight weight;
  at::DimVector sizes;
  bool trains = false;
};

// What a dict of modules holds under a key; or how much in all, where there is no key.
struct Place {
  py::object modules, key;
  std::string name;
  py::object module;
  Py_ssize_t count;
};

class Chain {
 public:
  // Every layer as chain_of() in pytorch_ext/chain.py describes it, and every place as places_of().
  Chain(const py::list& layers, const py::list& places);

  // Sees what has changed in the modules since the last call: dropout may have been switched, which makes all layers
  // anew (true). Raises where a module or a parameter is another object, or no longer what it was.
  bool refresh();

  // Lets go of the layers' memory and of the gradients'; refresh() makes the layers anew.
  void forget();

  const std::vector<std::unique_ptr<Slot>>& slots() const { return slots_; }
  const std::vector<std::unique_ptr<Layer>>& layers() const { return layers_; }
  // A tensor of the dtype and on the device of all.
  const Tensor& like() const { return slots_.front()->weight.value; }

 private:
  void read_slots(const py::tuple& layer);
  void check_places();
  void make_layers();

  py::list descriptions_;
  std::vector<Place> places_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Lookups lookups_{true};
};

}  // namespace pytorch_ext::train
