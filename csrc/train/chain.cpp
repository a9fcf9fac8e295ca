#include "chain.h"

#include <torch/csrc/autograd/python_variable.h>

namespace pytorch_ext::train {
namespace {

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

}  // namespace

Chain::Chain(const py::list& layers, const py::list& places) : descriptions_(layers) {
  for (py::handle layer : layers) read_slots(py::reinterpret_borrow<py::tuple>(layer));
  for (py::handle place : places) {
    const auto of = py::reinterpret_borrow<py::tuple>(place);
    const py::object modules = of[0], key = of[1];
    const py::object module = key.is_none() ? py::object() : py::object(modules[key]);
    places_.push_back({modules, key, of[2].cast<std::string>(), module, PyDict_GET_SIZE(modules.ptr())});
  }
}

void Chain::check_places() {
  for (const Place& place : places_) {
    if (place.module) {
      const bool is_same = lookups_.find(place.modules.ptr(), place.key.ptr()) == place.module.ptr();
      TORCH_CHECK(is_same, "TrainStep: expected the module ", place.name,
                  " that it was made with, got another; make a new TrainStep");
    } else {
      const Py_ssize_t count = lookups_.size(place.modules.ptr());
      TORCH_CHECK(count == place.count, "TrainStep: expected the ",
                  place.name.empty() ? "model" : "module " + place.name, " with the ", place.count,
                  " layers that it was made with, got ", count, "; make a new TrainStep");
    }
  }
}

void Chain::read_slots(const py::tuple& layer) {
  if (layer[0].cast<std::string>() != "linear") return;
  const py::object parameters = layer[1].attr("_parameters");
  for (const char* key : {"weight", "bias"}) {
    py::object object = parameters[key];
    if (object.is_none()) continue;
    auto slot = std::make_unique<Slot>();
    slot->module_parameters = parameters;
    slot->key = py::reinterpret_steal<py::str>(interned(key));
    slot->name = layer[2].cast<std::string>() + "." + key;
    slot->weight.value = THPVariable_Unpack(object.ptr());
    slot->sizes = slot->weight.value.sizes();
    slot->object = std::move(object);
    slots_.push_back(std::move(slot));
  }
}

bool Chain::refresh() {
  const bool as_before = !layers_.empty() && lookups_.unchanged();
  if (!as_before) {
    layers_.clear();
    make_layers();
  }
  for (const auto& slot : slots_) {
    const Tensor& value = slot->weight.value;
    TORCH_CHECK(value.sizes() == slot->sizes && value.scalar_type() == like().scalar_type() &&
                    value.device() == like().device() && value.is_contiguous(),
                "TrainStep: expected the parameter ", slot->name, " ", at::IntArrayRef(slot->sizes), " of ",
                like().scalar_type(), " on ", like().device(), ", contiguous, got ", value.sizes(), " of ",
                value.scalar_type(), " on ", value.device(), ", strides ", value.strides());
  }
  return !as_before;
}

void Chain::forget() {
  layers_.clear();
  for (auto& slot : slots_) slot->weight.gradient = Tensor();
}

void Chain::make_layers() {
  lookups_.forget();
  check_places();
  for (auto& slot : slots_) {
    PyObject* object = lookups_.find(slot->module_parameters.ptr(), slot->key.ptr());
    TORCH_CHECK(object == slot->object.ptr(), "TrainStep: expected the parameter ", slot->name,
                " that it was made with, got another object; make a new TrainStep");
  }
  static PyObject *const training = interned("training"), *const p = interned("p");
  size_t slot = 0;
  for (py::handle handle : descriptions_) {
    const auto d = py::reinterpret_borrow<py::tuple>(handle);
    const auto kind = d[0].cast<std::string>();
    if (kind == "linear") {
      Weight* weight = &slots_[slot++]->weight;
      const bool has_bias = slot < slots_.size() &&
                            slots_[slot]->module_parameters.is(slots_[slot - 1]->module_parameters) &&
                            slots_[slot]->key.cast<std::string>() == "bias";
      layers_.push_back(new_linear(weight, has_bias ? &slots_[slot++]->weight : nullptr, d[3].cast<std::string>()));
    } else if (kind == "activation") {
      layers_.push_back(new_activation(d[1].cast<std::string>()));
    } else if (kind == "softmax") {
      layers_.push_back(new_softmax(d[1].cast<int64_t>(), d[2].cast<bool>()));
    } else if (kind == "flatten") {
      layers_.push_back(new_flatten(d[1].cast<int64_t>(), d[2].cast<int64_t>()));
    } else if (kind == "squeeze") {
      layers_.push_back(new_squeeze(d[1].cast<int64_t>()));
    } else if (kind == "reshape") {
      layers_.push_back(new_reshape(d[1].cast<std::vector<int64_t>>()));
    } else {
      const py::object attributes = d[1].attr("__dict__");
      PyObject* is_training = lookups_.find(attributes.ptr(), training);
      PyObject* rate = lookups_.find(attributes.ptr(), p);
      const double probability = PyFloat_AsDouble(rate);
      if (PyErr_Occurred()) throw py::error_already_set();
      if (is_training == Py_True && probability > 0) layers_.push_back(new_dropout(probability));
    }
    if (!layers_.empty()) layers_.back()->set_reference(like());
  }
}

}  // namespace pytorch_ext::train
