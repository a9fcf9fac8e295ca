// One native call per parameter group: options, parameters, gradients and state are read and checked here before the
// first element changes. A function answers None, having changed no tensor, for what the kernels do not cover.
#include "optimizers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "../cpu/optimizers.h"
#include "../eager.h"
#include "../numerics/coefficients.h"
#include "kernel.h"

namespace pytorch_ext {
namespace {

namespace py = pybind11;

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

// The value under a key, or null.
PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Options of a parameter group. `covered` turns false where one of them asks for another implementation.
struct Options {
  PyObject* group;
  bool covered;

  explicit Options(const py::dict& g) : group(g.ptr()) {
    const Names& n = names();
    covered = !flag(n.foreach) && !flag(n.fused) && !flag(n.capturable) && !flag(n.differentiable);
  }
  bool flag(PyObject* key) {
    PyObject* value = find(group, key);
    return value && value != Py_None && PyObject_IsTrue(value) == 1;
  }
  double number(PyObject* key) { return as_number(find(group, key)); }
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

// An ordinary dense tensor with the sizes, the dtype and the device of `like`. In-place changes of inference tensors
// are for the stock step to judge.
bool matches(const Tensor& t, const Tensor& like) {
  return is_ordinary(t) && t.device() == like.device() && !t.is_inference() && t.scalar_type() == like.scalar_type() &&
         t.sizes() == like.sizes();
}

// Whether element i in memory of one is element i in memory of the other.
bool lies_like(const Tensor& t, const Tensor& like) {
  return (t.is_contiguous() && like.is_contiguous()) ||
         (t.is_non_overlapping_and_dense() && t.strides() == like.strides());
}

// Whether no two of these dense tensors share memory: then threads may change them at the same time.
template <class Range, class TensorOf>
bool are_disjoint(const Range& range, TensorOf&& tensor_of) {
  std::vector<std::pair<const char*, const char*>> pieces;
  pieces.reserve(range.size());
  for (const auto& item : range) {
    const Tensor& t = tensor_of(item);
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    if (t.numel()) pieces.emplace_back(begin, begin + t.nbytes());
  }
  std::sort(pieces.begin(), pieces.end());
  for (size_t i = 1; i < pieces.size(); i++)
    if (pieces[i].first < pieces[i - 1].second) return false;
  return true;
}

struct Parameter {
  PyObject* object;
  Tensor value, grad;
};

// The parameters that have a gradient; false where one is not covered.
bool gather(const Options& options, std::vector<Parameter>& found) {
  PyObject* params = find(options.group, names().params);
  if (!options.covered || !params || !PyList_Check(params)) return false;
  found.reserve(static_cast<size_t>(PyList_GET_SIZE(params)));
  for (py::handle object : py::reinterpret_borrow<py::list>(params)) {
    if (!THPVariable_CheckExact(object.ptr())) return false;
    const Tensor& value = THPVariable_Unpack(object.ptr());
    Tensor grad = value.grad();
    if (!grad.defined()) continue;
    if (!is_kernel_dtype(value.scalar_type()) || !matches(value, value) || !matches(grad, value)) return false;
    if (!lies_like(value, value) || !has_kernels(value)) return false;
    if (!found.empty() && value.device() != found[0].value.device()) return false;
    if (!lies_like(grad, value)) {
      at::NoGradGuard no_grad;
      grad = at::empty_like(value).copy_(grad);
    }
    found.push_back({object.ptr(), value, std::move(grad)});
  }
  return are_disjoint(found, [](const Parameter& p) -> const Tensor& { return p.value; });
}

// A parameter's dict of state, made by the defaultdict where there is none.
PyObject* state_of(const Parameter& p, const py::dict& states) {
  PyObject* state = find(states.ptr(), p.object);
  if (!state) {
    auto made = py::reinterpret_steal<py::object>(PyObject_GetItem(states.ptr(), p.object));
    if (!made) throw py::error_already_set();
    state = made.ptr();  // `states` holds it
  }
  return PyDict_Check(state) ? state : nullptr;
}

// The tensor under `key`, undefined where there is none; false where what is there is not covered.
bool read_state(const Parameter& p, PyObject* state, PyObject* key, Tensor& found) {
  PyObject* object = find(state, key);
  if (!object || object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  found = THPVariable_Unpack(object);
  return matches(found, p.value) && lies_like(found, p.value);
}

void write_state(PyObject* state, PyObject* key, const Tensor& t) {
  if (PyDict_SetItem(state, key, py::cast(t).ptr())) throw py::error_already_set();
}

void written(const Tensor& t) {
  if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
}

// Calls run(tensors) with describe(storage type, i) of the parameters of each dtype in turn.
template <template <class> class KernelTensor, class Describe, class Run>
void for_each_dtype(const std::vector<Parameter>& found, Describe&& describe, Run&& run) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    if (std::none_of(found.begin(), found.end(), [&](auto& p) { return p.value.scalar_type() == dtype; })) continue;
    WITH_STORAGE_TYPE("optim", dtype, [&] {
      std::vector<KernelTensor<S>> tensors;
      tensors.reserve(found.size());
      for (size_t i = 0; i < found.size(); i++)
        if (found[i].value.scalar_type() == dtype) tensors.push_back(describe(S(), i));
      py::gil_scoped_release no_gil;
      run(S(), tensors.data(), static_cast<int64_t>(tensors.size()));
    });
  }
}

py::object sgd_step(const py::dict& group, const py::dict& states) {
  const Names& n = names();
  Options options(group);
  const double lr = options.number(n.lr), momentum = options.number(n.momentum);
  const double dampening = options.number(n.dampening), weight_decay = options.number(n.weight_decay);
  const bool nesterov = options.flag(n.nesterov), maximize = options.flag(n.maximize);
  std::vector<Parameter> found;
  if (!gather(options, found)) return py::none();
  std::vector<Tensor> buffers(found.size());
  std::vector<bool> first(found.size());
  if (momentum != 0) {
    std::vector<PyObject*> state(found.size());
    for (size_t i = 0; i < found.size(); i++) {
      state[i] = state_of(found[i], states);
      if (!state[i] || !read_state(found[i], state[i], n.momentum_buffer, buffers[i])) return py::none();
    }
    for (size_t i = 0; i < found.size(); i++)
      if ((first[i] = !buffers[i].defined())) {
        buffers[i] = at::empty_like(found[i].value.detach());
        write_state(state[i], n.momentum_buffer, buffers[i]);
      }
  }
  auto describe = [&](auto storage, size_t i) {
    using S = decltype(storage);
    written(found[i].value);
    written(buffers[i]);
    return SgdTensor<S>{found[i].value.numel(), mutable_data<S>(found[i].value), data<S>(found[i].grad),
                        mutable_data<S>(buffers[i]), bool(first[i])};
  };
  for_each_dtype<SgdTensor>(found, describe, [&](auto storage, auto* tensors, int64_t count) {
    using S = decltype(storage);
    using T = compute_t<S>;
    const auto rule = sgd_rule<T>(lr, momentum, dampening, weight_decay, nesterov, maximize);
    RUN_KERNEL(found[0].value, sgd_step<S>)(rule, tensors, count);
  });
  return py::bool_(true);
}

struct AdamState {
  Tensor step, exp_avg, exp_avg_sq, max_exp_avg_sq;
};

// What torch.optim.Adam puts into an empty state.
void initialise_adam(const Parameter& p, PyObject* state, bool amsgrad) {
  const Names& n = names();
  auto step_dtype = at::get_default_dtype_as_scalartype() == at::kDouble ? at::kDouble : at::kFloat;
  write_state(state, n.step, at::zeros({}, at::dtype(step_dtype)));
  for (PyObject* key : {n.exp_avg, n.exp_avg_sq}) write_state(state, key, at::zeros_like(p.value.detach()));
  if (amsgrad) write_state(state, n.max_exp_avg_sq, at::zeros_like(p.value.detach()));
}

// The number of steps a parameter has seen; negative where it is not a whole number on the CPU.
double steps_done(const Tensor& step) {
  if (!is_ordinary(step) || !step.is_cpu() || step.is_inference() || step.numel() != 1) return -1;
  if (step.scalar_type() != at::kFloat && step.scalar_type() != at::kDouble) return -1;
  double t = step.scalar_type() == at::kFloat ? *step.const_data_ptr<float>() : *step.const_data_ptr<double>();
  return t >= 0 && t < 0x1p53 && t == std::floor(t) ? t : -1;
}

// step += 1 in the tensor's own dtype; the new value.
int64_t count_step(const Tensor& step) {
  written(step);
  if (step.scalar_type() == at::kFloat) return static_cast<int64_t>(*step.mutable_data_ptr<float>() += 1);
  return static_cast<int64_t>(*step.mutable_data_ptr<double>() += 1);
}

// The state of a parameter, created where it is empty; false where it is not covered.
bool read_adam(const Parameter& p, const py::dict& states, bool amsgrad, AdamState& s) {
  const Names& n = names();
  PyObject* state = state_of(p, states);
  if (!state) return false;
  if (PyDict_GET_SIZE(state) == 0) initialise_adam(p, state, amsgrad);
  PyObject* step = find(state, n.step);
  if (!step || !THPVariable_CheckExact(step)) return false;
  s.step = THPVariable_Unpack(step);
  return steps_done(s.step) >= 0 && read_state(p, state, n.exp_avg, s.exp_avg) && s.exp_avg.defined() &&
         read_state(p, state, n.exp_avg_sq, s.exp_avg_sq) && s.exp_avg_sq.defined() &&
         (!amsgrad || (read_state(p, state, n.max_exp_avg_sq, s.max_exp_avg_sq) && s.max_exp_avg_sq.defined()));
}

py::object adam_step(const py::dict& group, const py::dict& states) {
  const Names& n = names();
  Options options(group);
  const double lr = options.number(n.lr), eps = options.number(n.eps), weight_decay = options.number(n.weight_decay);
  PyObject* betas = find(options.group, n.betas);
  if (!betas || !PyTuple_Check(betas) || PyTuple_GET_SIZE(betas) != 2) return py::none();
  const double beta1 = options.as_number(PyTuple_GET_ITEM(betas, 0));
  const double beta2 = options.as_number(PyTuple_GET_ITEM(betas, 1));
  const bool amsgrad = options.flag(n.amsgrad), maximize = options.flag(n.maximize);
  const bool decoupled = options.flag(n.decoupled_weight_decay);
  std::vector<Parameter> found;
  if (!gather(options, found) || (!found.empty() && is_capturing(found[0].value))) return py::none();
  std::vector<AdamState> state(found.size());
  for (size_t i = 0; i < found.size(); i++)
    if (!read_adam(found[i], states, amsgrad, state[i])) return py::none();

  int64_t last = 0;
  AdamStep factors{};
  auto describe = [&](auto storage, size_t i) {
    using S = decltype(storage);
    using T = compute_t<S>;
    const AdamState& s = state[i];
    if (int64_t t = count_step(s.step); t != last) factors = adam_step_factors(lr, beta1, beta2, last = t);
    for (const Tensor& t : {found[i].value, s.exp_avg, s.exp_avg_sq, s.max_exp_avg_sq}) written(t);
    return AdamTensor<S>{found[i].value.numel(),        mutable_data<S>(found[i].value),
                         data<S>(found[i].grad),        mutable_data<S>(s.exp_avg),
                         mutable_data<S>(s.exp_avg_sq), mutable_data<S>(s.max_exp_avg_sq),
                         T(factors.negative_step_size), T(factors.scale)};
  };
  for_each_dtype<AdamTensor>(found, describe, [&](auto storage, auto* tensors, int64_t count) {
    using S = decltype(storage);
    using T = compute_t<S>;
    const auto rule = adam_rule<T>(lr, beta1, beta2, eps, weight_decay, decoupled, amsgrad, maximize);
    RUN_KERNEL(found[0].value, adam_step<S>)(rule, tensors, count);
  });
  return py::bool_(true);
}

// The norm of all gradients as a 0-dim tensor, the gradients scaled.
py::object clip_grad_norm(const py::list& params, double max_norm, bool error_if_nonfinite) {
  std::vector<Tensor> grads;
  for (py::handle object : params) {
    if (!THPVariable_CheckExact(object.ptr())) return py::none();
    Tensor grad = THPVariable_Unpack(object.ptr()).grad();
    if (!grad.defined()) continue;
    if (!is_kernel_dtype(grad.scalar_type()) || !matches(grad, grad) || !grad.is_contiguous()) return py::none();
    if (!has_kernels(grad)) return py::none();
    if (!grads.empty() && (grad.scalar_type() != grads[0].scalar_type() || grad.device() != grads[0].device()))
      return py::none();
    grads.push_back(std::move(grad));
  }
  if (grads.empty() || !are_disjoint(grads, [](const Tensor& g) -> const Tensor& { return g; })) return py::none();
  const at::ScalarType dtype = grads[0].scalar_type();
  Tensor norm = at::empty({}, grads[0].options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat));
  WITH_STORAGE_TYPE("clip_grad_norm_", dtype, [&] {
    using T = compute_t<S>;
    std::vector<GradTensor<S>> tensors;
    tensors.reserve(grads.size());
    for (const Tensor& g : grads) tensors.push_back({g.numel(), mutable_data<S>(g)});
    const auto count = static_cast<int64_t>(tensors.size());
    py::gil_scoped_release no_gil;
    RUN_KERNEL(norm, gradient_norm<S>)(tensors.data(), count, mutable_data<T>(norm));
    if (error_if_nonfinite)
      if (const double value = norm.item<double>(); !std::isfinite(value))  // waits for a device, as stock does
        throw std::runtime_error("clip_grad_norm_: expected gradients of finite norm, got " + std::to_string(value));
    RUN_KERNEL(norm, clip_gradients<S>)(tensors.data(), count, T(max_norm), data<T>(norm));
    for (const Tensor& g : grads) written(g);
  });
  return py::cast(norm.to(dtype));
}

void zero_grad(const py::list& params) {
  for (py::handle object : params)
    if (THPVariable_Check(object.ptr())) {
      const Tensor& p = THPVariable_Unpack(object.ptr());
      if (p.grad().defined()) p.mutable_grad().reset();
    }
}

}  // namespace

void define_optimizers(py::module_& m) {
  m.def("adam_step", &adam_step);
  m.def("sgd_step", &sgd_step);
  m.def("clip_grad_norm", &clip_grad_norm);
  m.def("zero_grad", &zero_grad);
}

}  // namespace pytorch_ext
