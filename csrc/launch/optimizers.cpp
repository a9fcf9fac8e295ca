// One native call per parameter group. A function answers None, having changed no tensor, for what the kernels do not
// cover.
#include "optimizers.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/profiler.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <stdexcept>

#include "optimizer_groups.h"

namespace pytorch_ext {

namespace py = pybind11;

void clip_gradients(const std::vector<Tensor>& grads, double max_norm, bool error_if_nonfinite, const Tensor& norm) {
  WITH_STORAGE_TYPE("clip_grad_norm_", grads[0].scalar_type(), [&] {
    using T = compute_t<S>;
    std::vector<GradTensor<S>> tensors;
    tensors.reserve(grads.size());
    for (const Tensor& g : grads) tensors.push_back({g.numel(), mutable_data<S>(g)});
    const auto count = static_cast<int64_t>(tensors.size());
    RUN_KERNEL(norm, gradient_norm<S>)(tensors.data(), count, mutable_data<T>(norm));
    if (error_if_nonfinite)
      if (const double value = norm.item<double>(); !std::isfinite(value))  // waits for a device, as stock does
        throw std::runtime_error("clip_grad_norm_: expected gradients of finite norm, got " + std::to_string(value));
    RUN_KERNEL(norm, clip_gradients<S>)(tensors.data(), count, T(max_norm), data<T>(norm));
    for (const Tensor& g : grads) written(g);
  });
}

namespace {

template <class Group>
py::object step(const py::dict& options, const py::dict& states) {
  Group group;
  GroupReader reader{states.ptr()};
  if (!group.read(options.ptr(), reader)) return py::none();
  py::gil_scoped_release no_gil;
  group.step();
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
  if (grads.empty() || !are_disjoint(grads)) return py::none();
  py::gil_scoped_release no_gil;
  const at::ScalarType dtype = grads[0].scalar_type();
  Tensor norm = at::empty({}, grads[0].options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat));
  clip_gradients(grads, max_norm, error_if_nonfinite, norm);
  norm = norm.to(dtype);
  py::gil_scoped_acquire gil;
  return py::cast(norm);
}

void zero_grad(const py::list& params) {
  for (py::handle object : params)
    if (THPVariable_Check(object.ptr())) {
      const Tensor& p = THPVariable_Unpack(object.ptr());
      if (p.grad().defined()) p.mutable_grad().reset();
    }
}

// Kept for good: nothing may be let go of after Python has ended.
PyObject* global_optimizer_hooks(const char* name) {
  return py::object(py::module_::import("torch.optim.optimizer").attr(name)).release().ptr();
}

bool is_optimizer_observed(py::handle optimizer) {
  const auto attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  if (!attributes) throw py::error_already_set();
  return is_observed(attributes.ptr());
}

}  // namespace

bool is_observed(PyObject* attributes) {
  static PyObject* const hooks[] = {PyUnicode_InternFromString("_optimizer_step_pre_hooks"),
                                    PyUnicode_InternFromString("_optimizer_step_post_hooks")};
  static PyObject* const global_hooks[] = {global_optimizer_hooks("_global_optimizer_pre_hooks"),
                                           global_optimizer_hooks("_global_optimizer_post_hooks")};
  for (PyObject* name : hooks) {
    PyObject* found = PyDict_GetItemWithError(attributes, name);
    if (!found || PyDict_GET_SIZE(found)) return true;
  }
  for (PyObject* found : global_hooks)
    if (PyDict_GET_SIZE(found)) return true;
  return torch::autograd::profiler::profilerEnabled();
}

void define_optimizers(py::module_& m) {
  m.def("adam_step", &step<AdamGroup>);
  m.def("sgd_step", &step<SgdGroup>);
  m.def("clip_grad_norm", &clip_grad_norm);
  m.def("zero_grad", &zero_grad);
  m.def("is_optimizer_observed", &is_optimizer_observed);
}

}  // namespace pytorch_ext
