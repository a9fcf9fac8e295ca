// A parameter group of an optimiser as the kernels take it: read from Python and checked before any element changes.
#pragma once

#include <functional>
#include <memory>

#include "../cpu/optimizers.h"
#include "../cuda/train_steps.h"
#include "kernel.h"
#include "lookups.h"

namespace pytorch_ext {

// What a group is read with.
struct GroupReader {
  PyObject* states;  // the optimiser's
  Lookups lookups;
  // The gradient of a parameter, undefined where it has none.
  std::function<Tensor(const Tensor&)> gradient_of = [](const Tensor& parameter) { return parameter.grad(); };
  bool obeys_hints = true;  // `foreach` and `fused` ask for stock's implementation
  // Momentum buffers that were made and hold nothing yet; null where nothing is read again before it takes a step.
  std::shared_ptr<std::vector<Tensor>> unwritten = nullptr;
};

struct Parameter {
  PyObject* object;
  Tensor value, grad;
};

class OptimizerGroup {
 public:
  virtual ~OptimizerGroup() = default;
  // False, having changed no tensor, where an option, a tensor or a state is for the stock step.
  virtual bool read(PyObject* group, GroupReader& reader) = 0;
  // The step of everything read. Needs no GIL.
  virtual void step() = 0;
  // Whether step() may be called again without reading: every tensor is as it was in read().
  virtual bool fits() const = 0;
  // Adds the rule, its numbers for so many steps, and the state of everything read to training steps in one launch.
  // False where there are more rules than these have room for.
  using ParameterOf = std::function<StepParameter*(const Tensor&)>;
  virtual bool add_to(TrainSteps& p, int steps, const ParameterOf& parameter_of) const = 0;
  // So many steps were taken outside: as step() leaves the state that is no tensor of the device.
  virtual void stepped(int64_t steps) = 0;

 protected:
  bool fits(const Tensor& state, const Parameter& p) const;
  std::vector<Parameter> found_;
};

class SgdGroup final : public OptimizerGroup {
 public:
  bool read(PyObject* group, GroupReader& reader) override;
  void step() override;
  bool fits() const override;
  bool add_to(TrainSteps& p, int steps, const ParameterOf& parameter_of) const override;
  void stepped(int64_t steps) override;

 private:
  double lr_, momentum_, dampening_, weight_decay_;
  bool nesterov_, maximize_;
  void have_written();
  std::vector<Tensor> buffers_;
  std::vector<bool> first_;
  std::shared_ptr<std::vector<Tensor>> unwritten_;
};

class AdamGroup final : public OptimizerGroup {
 public:
  bool read(PyObject* group, GroupReader& reader) override;
  void step() override;
  bool fits() const override;
  bool add_to(TrainSteps& p, int steps, const ParameterOf& parameter_of) const override;
  void stepped(int64_t steps) override;

 private:
  struct State {
    Tensor step, exp_avg, exp_avg_sq, max_exp_avg_sq;
  };
  bool read_state(const Parameter& p, GroupReader& reader, State& s);
  double lr_, beta1_, beta2_, eps_, weight_decay_;
  bool amsgrad_, maximize_, decoupled_;
  std::vector<State> states_;
};

// Adam's counter: step += 1 in the tensor's own dtype; the new value.
int64_t count_step(const Tensor& step);

// A tensor's elements are about to change in place.
inline void written(const Tensor& t) {
  if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
}

// An ordinary dense tensor with the sizes, the dtype and the device of `like`. In-place changes of inference tensors
// are for the stock step to judge.
bool matches(const Tensor& t, const Tensor& like);

// Whether no two of these dense tensors share memory: then threads may change them at the same time.
bool are_disjoint(const std::vector<Tensor>& tensors);

}  // namespace pytorch_ext
