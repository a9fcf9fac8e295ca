// The optimiser at the end of a step: its groups, options and state are those of the Python object, at every step.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "../launch/optimizer_groups.h"
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

  // Whether a hook or the profiler wants to see the steps.
  bool is_observed() const;
  // Schedulers look whether there was a step.
  void tell_schedulers();
  // Whether the gradient of a parameter is of use: it is updated, or counts for the norm.
  bool wants(const Tensor& parameter) const;
  // The parameters whose gradients there will be; `weights` outlives this.
  void take(std::vector<const Weight*> weights);
  // Everything is read and checked before the first element changes.
  void run(bool releases_gil);
  // Adds the rules and states of the parameters to training steps in one launch; why that cannot be, or nothing.
  // Afterwards stepped() says that these were taken.
  std::string add_to(TrainSteps& p, int steps, const OptimizerGroup::ParameterOf& parameter_of);
  void stepped(int64_t steps);
  bool clips() const { return max_norm_.has_value(); }

 private:
  void read();
  void refresh();

  pybind11::object optimizer_, attributes_;
  std::string rule_;
  std::optional<double> max_norm_;
  std::vector<const Weight*> weights_;
  std::vector<std::unique_ptr<OptimizerGroup>> groups_;
  std::unique_ptr<GroupReader> reader_;  // null: nothing is read
  std::shared_ptr<std::vector<Tensor>> unwritten_ = std::make_shared<std::vector<Tensor>>();
};

}  // namespace pytorch_ext::train
