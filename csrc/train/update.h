// The optimiser at the end of a step: its groups, options and state are those of the Python object, at every step.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "../launch/optimizer_groups.h"
#include "graphs.h"
#include "layers.h"

namespace pytorch_ext::train {

// Lets other threads of Python run, where that does not take longer than what is done meanwhile.
class WithoutGil {
 public:
  explicit WithoutGil(bool release) {
    if (release) released_.emplace();
  }

 private:
  std::optional<pybind11::gil_scoped_release> released_;
};

class Update {
 public:
  // `rule` is "sgd" or "adam". The gradients' norm is clipped to `max_norm` where that is given.
  Update(pybind11::object optimizer, std::string rule, std::optional<double> max_norm);

  // Raises in inference mode, where what is made cannot be changed elsewhere.
  static void check_mode();
  // Whether a hook or the profiler wants to see the steps.
  bool is_observed() const;
  // The step was taken, and schedulers look whether it was.
  void tell_schedulers();
  // Whether the gradient of a parameter is of use: it is updated, or counts for the norm.
  bool wants(const Tensor& parameter) const;
  // The parameters whose gradients there will be, and those that want none as yet; all outlive this.
  void take(std::vector<const Weight*> weights, std::vector<const Weight*> unwanted);
  // Whether the optimiser has come to update one that was unwanted.
  bool misses_gradients() const;
  // Reads and checks what has changed since the last call. All that follow are for what was read, and need no GIL.
  void refresh();
  void step();
  // The same by launches for a graph: what these depend on, and themselves.
  bool add_to(GraphArguments& arguments, LaunchKey& key);
  void record();
  // So many steps were taken by launches that are no step() of this.
  void stepped(int64_t steps);
  // The step is not taken: what refresh() has added to the optimiser's state goes again.
  void undo();
  // Lets go of the memory of its own.
  void forget_memory() { norm_ = Buffer(); }
  // Adds the rules and states of the parameters to training steps in one launch; why that cannot be, or nothing.
  std::string add_to(TrainSteps& p, int steps, const OptimizerGroup::ParameterOf& parameter_of);
  bool clips() const { return max_norm_.has_value(); }

 private:
  void read();
  void clip();

  pybind11::object optimizer_, attributes_;
  std::string rule_;
  std::optional<double> max_norm_;
  std::vector<const Weight*> weights_, unwanted_;
  Buffer norm_;  // of the gradients
  std::vector<std::unique_ptr<OptimizerGroup>> groups_;
  std::unique_ptr<GroupReader> reader_;  // null: nothing is read
  std::shared_ptr<std::vector<Tensor>> unwritten_ = std::make_shared<std::vector<Tensor>>();
};

}  // namespace pytorch_ext::train
