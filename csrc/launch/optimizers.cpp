// One native call per optimiser step: the parameters of a group, their gradients and their state are gathered here, all
// checked before the first one is changed. A function answers False, having changed nothing, for what it does not cover.
#include "optimizers.h"

#include <ATen/ops/full.h>
#include <torch/csrc/autograd/python_variable.h>

#include "../cpu/optimizers.h"
#include "tensors.h"

namespace pytorch_ext {
namespace {

namespace py = pybind11;

// Whether a kernel may walk this tensor as one array, in the layout of `like`.
bool is_flat(const Tensor& t, const Tensor& like) {
  return t.layout() == at::kStrided && t.is_cpu() && t.scalar_type() == like.scalar_type() &&
         t.sizes() == like.sizes() && t.is_contiguous() && !t.is_neg() && !t.is_conj();
}

struct Parameter {
  Tensor value, grad;
  PyObject* state;  // a dict, or null before the first step
};

// The parameters that have a gradient; false where one is not covered.
bool gather(const py::list& params, const py::dict& states, std::vector<Parameter>& found) {
  found.reserve(params.size());
  for (py::handle object : params) {
    if (!THPVariable_CheckExact(object.ptr())) return false;
    const Tensor& value = THPVariable_Unpack(object.ptr());
    Tensor grad = value.grad();
    if (!grad.defined()) continue;
    if (!is_kernel_dtype(value.scalar_type()) || !is_flat(value, value)) return false;
    if (grad.layout() != at::kStrided) return false;
    if (!grad.is_contiguous()) grad = grad.contiguous();
    if (!is_flat(grad, value)) return false;
    PyObject* state = PyDict_GetItemWithError(states.ptr(), object.ptr());
    if (!state && PyErr_Occurred()) throw py::error_already_set();
    found.push_back({value, std::move(grad), state && PyDict_Check(state) && PyDict_GET_SIZE(state) ? state : nullptr});
  }
  return found.empty() || std::all_of(found.begin(), found.end(), [&](const Parameter& p) {
    return p.value.scalar_type() == found[0].value.scalar_type();
  });
}

// The tensor under `key` of a parameter's state; undefined where there is none.
Tensor entry(const Parameter& p, const char* key) {
  PyObject* object = p.state ? PyDict_GetItemString(p.state, key) : nullptr;
  return object && THPVariable_CheckExact(object) ? THPVariable_Unpack(object) : Tensor();
}

void written(const Tensor& t) { t.unsafeGetTensorImpl()->bump_version(); }

// Powers by squaring in double, from the current beta and the stored step: never a running product.
double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2, base *= base)
    if (exponent % 2) result *= base;
  return result;
}

// State of Adam: 'missing' asks Python to create it, as torch.optim does, and call again.
py::object adam_step(const py::list& params, const py::dict& states, double lr, double beta1, double beta2, double eps,
                     double weight_decay, bool decoupled, bool amsgrad, bool maximize) {
  std::vector<Parameter> found;
  if (!gather(params, states, found)) return py::bool_(false);
  struct State {
    Tensor step, m, v, v_max;
  };
  std::vector<State> state(found.size());
  for (size_t i = 0; i < found.size(); i++) {
    const Parameter& p = found[i];
    if (!p.state) return py::str("missing");
    state[i] = {entry(p, "step"), entry(p, "exp_avg"), entry(p, "exp_avg_sq"),
                amsgrad ? entry(p, "max_exp_avg_sq") : Tensor()};
    auto flat = [&](const Tensor& t) { return t.defined() && is_flat(t, p.value); };
    const Tensor& step = state[i].step;
    if (!step.defined() || !step.is_cpu() || step.scalar_type() != at::kFloat || step.numel() != 1) return py::bool_(false);
    if (!flat(state[i].m) || !flat(state[i].v) || (amsgrad && !flat(state[i].v_max))) return py::bool_(false);
  }
  if (found.empty()) return py::bool_(true);
  WITH_STORAGE_TYPE("adam", found[0].value.scalar_type(), [&] {
    using T = compute_t<S>;
    AdamRule<T> rule{T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(weight_decay), T(-(lr * weight_decay)),
                     decoupled, amsgrad, maximize};
    std::vector<AdamTensor<S>> tensors;
    tensors.reserve(found.size());
    float last_step = -1;
    double step_size = 0, scale = 0;
    for (size_t i = 0; i < found.size(); i++) {
      State& s = state[i];
      float t = *static_cast<float*>(s.step.mutable_data_ptr()) += 1;
      written(s.step);
      if (t != last_step) {
        step_size = lr / (1 - power(beta1, static_cast<int64_t>(t)));
        scale = 1 / std::sqrt(1 - power(beta2, static_cast<int64_t>(t)));
        last_step = t;
      }
      tensors.push_back({found[i].value.numel(), mutable_data<S>(found[i].value), data<S>(found[i].grad),
                         mutable_data<S>(s.m), mutable_data<S>(s.v), mutable_data<S>(s.v_max), T(-step_size), T(scale)});
      written(found[i].value);
      written(s.m);
      written(s.v);
      if (amsgrad) written(s.v_max);
    }
    CPU_KERNEL(adam_step<S>)(rule, tensors.data(), static_cast<int64_t>(tensors.size()));
  });
  return py::bool_(true);
}

// SGD keeps state only with momentum; the first step's buffer is created here and handed over in `created`.
py::object sgd_step(const py::list& params, const py::dict& states, double lr, double momentum, double dampening,
                    double weight_decay, bool nesterov, bool maximize) {
  std::vector<Parameter> found;
  if (!gather(params, states, found)) return py::bool_(false);
  std::vector<Tensor> buffers(found.size());
  if (momentum != 0)
    for (size_t i = 0; i < found.size(); i++) {
      if (!found[i].state) return py::str("missing");
      buffers[i] = entry(found[i], "momentum_buffer");
      if (buffers[i].defined() && !is_flat(buffers[i], found[i].value)) return py::bool_(false);
    }
  if (found.empty()) return py::bool_(true);
  WITH_STORAGE_TYPE("sgd", found[0].value.scalar_type(), [&] {
    using T = compute_t<S>;
    SgdRule<T> rule{T(-lr), T(momentum), T(1 - dampening), T(weight_decay), nesterov, maximize};
    std::vector<SgdTensor<S>> tensors;
    tensors.reserve(found.size());
    for (size_t i = 0; i < found.size(); i++) {
      const bool first = momentum != 0 && !buffers[i].defined();
      if (first) {
        buffers[i] = empty(found[i].value.sizes(), found[i].value);
        PyDict_SetItemString(found[i].state, "momentum_buffer", py::cast(buffers[i]).ptr());
      }
      tensors.push_back({found[i].value.numel(), mutable_data<S>(found[i].value), data<S>(found[i].grad),
                         mutable_data<S>(buffers[i]), first});
      written(found[i].value);
      if (buffers[i].defined()) written(buffers[i]);
    }
    CPU_KERNEL(sgd_step<S>)(rule, tensors.data(), static_cast<int64_t>(tensors.size()));
  });
  return py::bool_(true);
}

// The norm of all gradients as a 0-dim tensor, gradients scaled; None where a gradient is not covered.
py::object clip_grad_norm(const py::list& params, double max_norm) {
  std::vector<Tensor> grads;
  for (py::handle object : params) {
    if (!THPVariable_CheckExact(object.ptr())) return py::none();
    Tensor grad = THPVariable_Unpack(object.ptr()).grad();
    if (!grad.defined()) continue;
    if (!is_kernel_dtype(grad.scalar_type()) || !is_flat(grad, grad) || grad.requires_grad()) return py::none();
    if (!grads.empty() && grad.scalar_type() != grads[0].scalar_type()) return py::none();
    grads.push_back(std::move(grad));
  }
  if (grads.empty()) return py::none();
  Tensor total = empty({}, grads[0]);
  WITH_STORAGE_TYPE("clip_grad_norm_", grads[0].scalar_type(), [&] {
    std::vector<GradTensor<S>> tensors;
    for (const Tensor& g : grads) tensors.push_back({g.numel(), mutable_data<S>(g)});
    const auto count = static_cast<int64_t>(tensors.size());
    auto norm = CPU_KERNEL(gradient_norm<S>)(tensors.data(), count);
    total.fill_(norm);
    if (max_norm >= 0) {
      CPU_KERNEL(clip_gradients<S>)(tensors.data(), count, compute_t<S>(max_norm), norm);
      for (const Tensor& g : grads) written(g);
    }
  });
  return py::cast(total);
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
