// How a group's options, parameters, gradients and state are read, and the step of what was read.
#include "optimizer_groups.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>

#include "../eager.h"

namespace pytorch_ext {

namespace py = pybind11;

bool matches(const Tensor& t, const Tensor& like) {
  return is_ordinary(t) && t.device() == like.device() && !t.is_inference() && t.scalar_type() == like.scalar_type() &&
         t.sizes() == like.sizes();
}

bool are_disjoint(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<const char*, const char*>> pieces;
  pieces.reserve(tensors.size());
  for (const Tensor& t : tensors) {
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    if (t.numel()) pieces.emplace_back(begin, begin + t.nbytes());
  }
  std::sort(pieces.begin(), pieces.end());
  for (size_t i = 1; i < pieces.size(); i++)
    if (pieces[i].first < pieces[i - 1].second) return false;
  return true;
}

namespace {

// The keys of parameter groups and states, interned: found by their address.
struct Names {
  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
  PyObject *params = intern("params"), *lr = intern("lr"), *weight_decay = intern("weight_decay");
  PyObject *maximize = intern("maximize"), *momentum = intern("momentum"), *dampening = intern("dampening");
  PyObject *nesterov = intern("nesterov"), *betas = intern("betas"), *eps = intern("eps"), *amsgrad = intern("amsgrad");
  PyObject *decoupled_weight_decay = intern("decoupled_weight_decay"), *foreach = intern("foreach");
  PyObject *fused = intern("fused"), *capturable = intern("capturable"), *differentiable = intern("differentiable");
  PyObject *step = intern("step"), *exp_avg = intern("exp_avg"), *exp_avg_sq = intern("exp_avg_sq");
  PyObject *max_exp_avg_sq = intern("max_exp_avg_sq"), *momentum_buffer = intern("momentum_buffer");
};
const Names& names() {
  static const Names* const all = new Names;
  return *all;
}

// Options of a parameter group. `covered` turns false where one of them asks for another implementation.
struct Options {
  PyObject* group;
  Lookups& lookups;
  bool covered;

  Options(PyObject* g, GroupReader& reader) : group(g), lookups(reader.lookups) {
    const Names& n = names();
    covered = !flag(n.capturable) && !flag(n.differentiable);
    if (reader.obeys_hints) covered = covered && !flag(n.foreach) && !flag(n.fused);
  }
  bool flag(PyObject* key) {
    PyObject* value = lookups.find(group, key);
    return value && value != Py_None && PyObject_IsTrue(value) == 1;
  }
  double number(PyObject* key) { return as_number(lookups.find(group, key)); }
  double as_number(PyObject* value) {
    if (!value || THPVariable_Check(value)) {  // a tensor's value is read by the stock step, at its own time
      covered = false;
      return 0;
    }
    double number = PyFloat_AsDouble(value);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
};

// Whether element i in memory of one is element i in memory of the other.
bool lies_like(const Tensor& t, const Tensor& like) {
  return (t.is_contiguous() && like.is_contiguous()) ||
         (t.is_non_overlapping_and_dense() && t.strides() == like.strides());
}

// The parameters that have a gradient; false where one is not covered.
bool gather(const Options& options, const GroupReader& reader, std::vector<Parameter>& found) {
  found.clear();
  PyObject* params = options.lookups.find(options.group, names().params);
  if (!options.covered || !params || !PyList_Check(params)) return false;
  const Py_ssize_t count = PyList_GET_SIZE(options.lookups.items(params));
  std::vector<Tensor> values;
  values.reserve(static_cast<size_t>(count)), found.reserve(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject* object = PyList_GET_ITEM(params, i);
    if (!THPVariable_CheckExact(object)) return false;
    const Tensor& value = THPVariable_Unpack(object);
    Tensor grad = reader.gradient_of(value);
    if (!grad.defined()) continue;
    if (!is_kernel_dtype(value.scalar_type()) || !matches(value, value) || !matches(grad, value)) return false;
    if (!lies_like(value, value) || !has_kernels(value)) return false;
    if (!found.empty() && value.device() != found[0].value.device()) return false;
    if (!lies_like(grad, value)) {
      at::NoGradGuard no_grad;
      grad = at::empty_like(value).copy_(grad);
    }
    values.push_back(value);
    found.push_back({object, value, std::move(grad)});
  }
  return are_disjoint(values);
}

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// A parameter's dict of state, made by the defaultdict where there is none.
PyObject* state_of(const Parameter& p, GroupReader& reader) {
  PyObject* state = reader.lookups.find(reader.states, p.object);
  if (!state) {
    auto made = py::reinterpret_steal<py::object>(PyObject_GetItem(reader.states, p.object));
    if (!made) throw py::error_already_set();
    state = made.ptr();  // `states` holds it
    reader.made.emplace_back(borrowed(reader.states), borrowed(p.object));
  }
  return PyDict_Check(state) ? state : nullptr;
}

// The tensor under `key`, undefined where there is none; false where what is there is not covered.
bool read_tensor(const Parameter& p, Lookups& lookups, PyObject* state, PyObject* key, Tensor& found) {
  PyObject* object = lookups.find(state, key);
  if (!object || object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  found = THPVariable_Unpack(object);
  return matches(found, p.value) && lies_like(found, p.value);
}

void write_state(GroupReader& reader, PyObject* state, PyObject* key, const Tensor& t) {
  if (PyDict_SetItem(state, key, py::cast(t).ptr())) throw py::error_already_set();
  reader.made.emplace_back(borrowed(state), borrowed(key));
}

// Calls run(tensors) with describe(storage type, i) of the parameters of each dtype in turn.
template <template <class> class KernelTensor, class Describe, class Run>
void for_each_dtype(const std::vector<Parameter>& found, Describe&& describe, Run&& run) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    if (std::none_of(found.begin(), found.end(), [&](auto& p) { return p.value.scalar_type() == dtype; })) continue;
    WITH_STORAGE_TYPE("optim", dtype, [&] {
      c10::SmallVector<KernelTensor<S>, 8> tensors;
      for (size_t i = 0; i < found.size(); i++)
        if (found[i].value.scalar_type() == dtype) tensors.push_back(describe(S(), i));
      run(S(), tensors.data(), static_cast<int64_t>(tensors.size()));
    });
  }
}

}  // namespace

void GroupReader::undo() {
  for (; !made.empty(); made.pop_back())
    if (PyObject_DelItem(made.back().first.ptr(), made.back().second.ptr())) PyErr_Clear();  // it is gone already
}

bool OptimizerGroup::fits(const Tensor& state, const Parameter& p) const {
  return !state.defined() || (state.numel() == p.value.numel() && state.scalar_type() == p.value.scalar_type() &&
                              state.device() == p.value.device() && lies_like(state, p.value));
}

bool SgdGroup::read(PyObject* group, GroupReader& reader) {
  const Names& n = names();
  Options options(group, reader);
  lr_ = options.number(n.lr), momentum_ = options.number(n.momentum);
  dampening_ = options.number(n.dampening), weight_decay_ = options.number(n.weight_decay);
  nesterov_ = options.flag(n.nesterov), maximize_ = options.flag(n.maximize);
  if (!gather(options, reader, found_)) return false;
  buffers_.assign(found_.size(), {});
  first_.assign(found_.size(), false);
  if (momentum_ == 0) return true;
  std::vector<PyObject*> state(found_.size());
  for (size_t i = 0; i < found_.size(); i++) {
    state[i] = state_of(found_[i], reader);
    if (!state[i] || !read_tensor(found_[i], reader.lookups, state[i], n.momentum_buffer, buffers_[i])) return false;
  }
  unwritten_ = reader.unwritten;
  for (size_t i = 0; i < found_.size(); i++) {
    if (!buffers_[i].defined()) {
      first_[i] = true;
      buffers_[i] = at::empty_like(found_[i].value.detach());
      write_state(reader, state[i], n.momentum_buffer, buffers_[i]);
      if (unwritten_) unwritten_->push_back(buffers_[i]);
    } else if (unwritten_) {
      first_[i] = std::any_of(unwritten_->begin(), unwritten_->end(), [&](auto& t) { return t.is_same(buffers_[i]); });
    }
  }
  return true;
}

void SgdGroup::have_written() {
  for (size_t i = 0; i < found_.size(); i++) {
    auto is_own = [&](const Tensor& t) { return t.is_same(buffers_[i]); };
    if (first_[i] && unwritten_)
      unwritten_->erase(std::remove_if(unwritten_->begin(), unwritten_->end(), is_own), unwritten_->end());
    first_[i] = false;
  }
}

bool SgdGroup::fits() const {
  for (size_t i = 0; i < found_.size(); i++)
    if (!OptimizerGroup::fits(found_[i].grad, found_[i]) || !OptimizerGroup::fits(buffers_[i], found_[i])) return false;
  return true;
}

void SgdGroup::step() {
  auto describe = [&](auto storage, size_t i) {
    using S = decltype(storage);
    written(found_[i].value);
    written(buffers_[i]);
    return tensor<S>(i);
  };
  for_each_dtype<SgdTensor>(found_, describe, [&](auto storage, auto* tensors, int64_t count) {
    using S = decltype(storage);
    RUN_KERNEL(found_[0].value, sgd_step<S>)(rule<compute_t<S>>(), tensors, count);
  });
  have_written();
}

namespace {

// What torch.optim.Adam puts into an empty state.
void initialise_adam(GroupReader& reader, const Parameter& p, PyObject* state, bool amsgrad) {
  const Names& n = names();
  auto step_dtype = at::get_default_dtype_as_scalartype() == at::kDouble ? at::kDouble : at::kFloat;
  write_state(reader, state, n.step, at::zeros({}, at::dtype(step_dtype)));
  for (PyObject* key : {n.exp_avg, n.exp_avg_sq}) write_state(reader, state, key, at::zeros_like(p.value.detach()));
  if (amsgrad) write_state(reader, state, n.max_exp_avg_sq, at::zeros_like(p.value.detach()));
}

// The number of steps a parameter has seen; negative where it is not a whole number on the CPU.
double steps_done(const Tensor& step) {
  if (!is_ordinary(step) || !step.is_cpu() || step.is_inference() || step.numel() != 1) return -1;
  if (step.scalar_type() != at::kFloat && step.scalar_type() != at::kDouble) return -1;
  const double t = step.scalar_type() == at::kFloat ? *data<float>(step) : *data<double>(step);
  return t >= 0 && t < 0x1p53 && t == std::floor(t) ? t : -1;
}

}  // namespace

int64_t count_step(const Tensor& step) {
  written(step);
  if (step.scalar_type() == at::kFloat) return static_cast<int64_t>(*mutable_data<float>(step) += 1);
  return static_cast<int64_t>(*mutable_data<double>(step) += 1);
}

// The state of a parameter, created where it is empty.
bool AdamGroup::read_state(const Parameter& p, GroupReader& reader, State& s) {
  const Names& n = names();
  Lookups& lookups = reader.lookups;
  PyObject* state = state_of(p, reader);
  if (!state) return false;
  if (PyDict_GET_SIZE(state) == 0) initialise_adam(reader, p, state, amsgrad_);
  PyObject* step = lookups.find(state, n.step);
  if (!step || !THPVariable_CheckExact(step)) return false;
  s.step = THPVariable_Unpack(step);
  return steps_done(s.step) >= 0 && read_tensor(p, lookups, state, n.exp_avg, s.exp_avg) && s.exp_avg.defined() &&
         read_tensor(p, lookups, state, n.exp_avg_sq, s.exp_avg_sq) && s.exp_avg_sq.defined() &&
         (!amsgrad_ ||
          (read_tensor(p, lookups, state, n.max_exp_avg_sq, s.max_exp_avg_sq) && s.max_exp_avg_sq.defined()));
}

bool AdamGroup::read(PyObject* group, GroupReader& reader) {
  const Names& n = names();
  Options options(group, reader);
  lr_ = options.number(n.lr), eps_ = options.number(n.eps), weight_decay_ = options.number(n.weight_decay);
  PyObject* betas = reader.lookups.find(group, n.betas);
  if (!betas || !PyTuple_Check(betas) || PyTuple_GET_SIZE(betas) != 2) return false;
  beta1_ = options.as_number(PyTuple_GET_ITEM(betas, 0));
  beta2_ = options.as_number(PyTuple_GET_ITEM(betas, 1));
  amsgrad_ = options.flag(n.amsgrad), maximize_ = options.flag(n.maximize);
  decoupled_ = options.flag(n.decoupled_weight_decay);
  if (!gather(options, reader, found_) || (!found_.empty() && is_capturing(found_[0].value))) return false;
  states_.assign(found_.size(), {});
  for (size_t i = 0; i < found_.size(); i++)
    if (!read_state(found_[i], reader, states_[i])) return false;
  return true;
}

bool AdamGroup::fits() const {
  for (size_t i = 0; i < found_.size(); i++) {
    const State& s = states_[i];
    if (steps_done(s.step) < 0) return false;
    for (const Tensor* t : {&found_[i].grad, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq})
      if (!OptimizerGroup::fits(*t, found_[i])) return false;
  }
  return true;
}

void AdamGroup::step() {
  int64_t last = 0;
  AdamStep factors{};
  auto describe = [&](auto storage, size_t i) {
    using S = decltype(storage);
    const Tensor& value = found_[i].value;
    const State& s = states_[i];
    if (int64_t t = count_step(s.step); t != last) factors = adam_step_factors(lr_, beta1_, beta2_, last = t);
    for (const Tensor* t : {&value, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq}) written(*t);
    return tensor<S>(i, factors);
  };
  for_each_dtype<AdamTensor>(found_, describe, [&](auto storage, auto* tensors, int64_t count) {
    using S = decltype(storage);
    RUN_KERNEL(found_[0].value, adam_step<S>)(rule<compute_t<S>>(), tensors, count);
  });
}

}  // namespace pytorch_ext
