// A parameter group of an optimiser as the kernels take it: read from Python and checked before any element changes.
#pragma once

#include <functional>
#include <memory>

#include "../cpu/optimizers.h"
#include "../cuda/graph_arguments.h"
#include "../cuda/train_steps.h"
#include "../numerics/coefficients.h"
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
  // The dictionaries, and their keys, that state was added to.
  std::vector<std::pair<pybind11::object, pybind11::object>> made = {};

  // Takes away what was added.
  void undo();
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
  // The numbers of the next step for a graph, and to the key what else its launches have as arguments. False where
  // there is no room.
  virtual bool add_to(GraphArguments& arguments, std::vector<int64_t>& key) = 0;
  // The step's launches for a graph, with the numbers that were added last; stepped(1) is to follow when they are sent.
  virtual void record() const = 0;

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
  bool add_to(GraphArguments& arguments, std::vector<int64_t>& key) override;
  void record() const override;

 private:
  template <class T>
  SgdRule<T> rule() const;
  template <class S>
  SgdTensor<S> tensor(size_t i) const;
  double lr_, momentum_, dampening_, weight_decay_;
  bool nesterov_, maximize_;
  const void* recorded_rule_;
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
  bool add_to(GraphArguments& arguments, std::vector<int64_t>& key) override;
  void record() const override;

 private:
  struct State {
    Tensor step, exp_avg, exp_avg_sq, max_exp_avg_sq;
  };
  bool read_state(const Parameter& p, GroupReader& reader, State& s);
  template <class T>
  AdamRule<T> rule() const;
  template <class S>
  AdamTensor<S> tensor(size_t i, const AdamStep& factors) const;
  // The number of steps, after the next one, of each parameter: which of `counts`.
  std::vector<int> next_counts(std::vector<int64_t>& counts) const;
  double lr_, beta1_, beta2_, eps_, weight_decay_;
  bool amsgrad_, maximize_, decoupled_;
  std::vector<State> states_;
  std::vector<int> count_of_;                  // of each parameter, in
  std::vector<const void*> recorded_numbers_;  // of steps by parameters that have taken equally many
};

// Adam's counter: step += 1 in the tensor's own dtype; the new value.
int64_t count_step(const Tensor& step);

template <class T>
SgdRule<T> SgdGroup::rule() const {
  return sgd_rule<T>(lr_, momentum_, dampening_, weight_decay_, nesterov_, maximize_);
}

template <class S>
SgdTensor<S> SgdGroup::tensor(size_t i) const {
  const Parameter& p = found_[i];
  return {p.value.numel(), mutable_data<S>(p.value), data<S>(p.grad), mutable_data<S>(buffers_[i]),
          static_cast<bool>(first_[i])};
}

template <class T>
AdamRule<T> AdamGroup::rule() const {
  return adam_rule<T>(lr_, beta1_, beta2_, eps_, weight_decay_, decoupled_, amsgrad_, maximize_);
}

template <class S>
AdamTensor<S> AdamGroup::tensor(size_t i, const AdamStep& factors) const {
  using T = compute_t<S>;
  const Parameter& p = found_[i];
  const State& s = states_[i];
  return {p.value.numel(),
          mutable_data<S>(p.value),
          data<S>(p.grad),
          mutable_data<S>(s.exp_avg),
          mutable_data<S>(s.exp_avg_sq),
          mutable_data<S>(s.max_exp_avg_sq),
          T(factors.negative_step_size),
          T(factors.scale)};
}

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
