// The way in for eager Python calls: straight to the dispatcher when the arguments are ordinary tensors that the
// kernels cover, None otherwise. On None the Python function decides: it raises, or takes another path.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace pytorch_ext {

// An ordinary dense tensor: no subclass, no wrapper of a functional transform, no lazy conjugate or negative bit, and
// no forward-mode tangent.
inline bool is_ordinary(const at::Tensor& t) {
  using c10::DispatchKey;
  using c10::DispatchKeySet;
  static const DispatchKeySet allowed =
      DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU,
                      DispatchKey::AutogradCUDA, DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});
  return !(t.key_set().raw_repr() & ~allowed.raw_repr()) && !t._fw_grad(/*level=*/0).defined();
}

// Whether a function mode decides what a call means. The one that torch.set_default_device and `with torch.device(...)`
// leave on does not: it is about new tensors.
inline bool in_function_mode() {
  using Modes = at::impl::PythonTorchFunctionTLS;
  if (!at::impl::torch_function_mode_enabled()) return false;
  // Kept for good: nothing may be let go of after Python has ended.
  static PyObject* const device_mode =
      pybind11::object(pybind11::module_::import("torch.utils._device").attr("DeviceContext")).release().ptr();
  for (int64_t i = 0; i < Modes::stack_len(); i++)
    if (reinterpret_cast<PyObject*>(Py_TYPE(Modes::get_stack_at(i)->ptr(getPyInterpreter()))) != device_mode)
      return true;
  return false;
}

// Whether torch.onnx's older exporter traces the call: it knows stock operators only.
inline bool is_exporting_onnx() {
  if (!torch::jit::tracer::isTracing()) return false;
  return pybind11::module_::import("pytorch_ext.ops.paths").attr("is_exporting_onnx")().cast<bool>();
}

inline bool in_transform() {
  return in_function_mode() || is_exporting_onnx() ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// Argument<T>::read(object, value): true where the object is plainly a T.
template <class T>
struct Argument;
template <>
struct Argument<at::Tensor> {
  static bool read(PyObject* object, at::Tensor& value) {
    if (!THPVariable_CheckExact(object)) return false;
    value = THPVariable_Unpack(object);
    return is_ordinary(value);
  }
};
template <class T>
struct Argument<std::optional<T>> {
  static bool read(PyObject* object, std::optional<T>& value) {
    if (object == Py_None) return true;
    return Argument<T>::read(object, value.emplace());
  }
};
template <>
struct Argument<bool> {
  static bool read(PyObject* object, bool& value) {
    value = object == Py_True;
    return PyBool_Check(object);
  }
};
template <>
struct Argument<int64_t> {
  static bool read(PyObject* object, int64_t& value) {
    if (!PyLong_CheckExact(object)) return false;
    int overflow = 0;
    value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
  }
};
template <>
struct Argument<double> {
  static bool read(PyObject* object, double& value) {
    if (PyFloat_CheckExact(object)) {
      value = PyFloat_AS_DOUBLE(object);
      return true;
    }
    int64_t integer;
    if (!Argument<int64_t>::read(object, integer)) return false;
    value = static_cast<double>(integer);
    return true;
  }
};
template <>
struct Argument<at::ScalarType> {
  static bool read(PyObject* object, at::ScalarType& value) {
    if (!THPDtype_Check(object)) return false;
    value = reinterpret_cast<THPDtype*>(object)->scalar_type;
    return true;
  }
};
template <>
struct Argument<std::string_view> {
  static bool read(PyObject* object, std::string_view& value) {
    if (!PyUnicode_Check(object)) return false;
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text) PyErr_Clear();
    value = {text ? text : "", static_cast<size_t>(length)};
    return text != nullptr;
  }
};

// eager<&ops::name, &covers_name>::define(m, "name") makes the Python function: `covers` says whether the kernels take
// the arguments. A plain C function: pybind11's own make lists of the arguments, which takes as long as a small kernel.
template <auto Function, auto Covers, class Signature = decltype(Function)>
struct eager;
template <auto Function, auto Covers, class... Args>
struct eager<Function, Covers, at::Tensor (*)(Args...)> {
  static void define(pybind11::module_& m, const char* name) {
    static PyMethodDef method{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL,
                              nullptr};
    const auto module_name = m.attr("__name__");
    m.add_object(name,
                 pybind11::reinterpret_steal<pybind11::object>(PyCFunction_NewEx(&method, nullptr, module_name.ptr())));
  }

 private:
  static PyObject* call(PyObject*, PyObject* const* objects, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    TORCH_CHECK_TYPE(count == sizeof...(Args), "pytorch_ext: expected ", sizeof...(Args), " arguments, got ", count);
    std::tuple<std::decay_t<Args>...> values;
    const bool covered =
        !in_transform() && read(values, std::index_sequence_for<Args...>{}, objects) && std::apply(Covers, values);
    if (!covered) Py_RETURN_NONE;
    return THPVariable_Wrap([&] {
      pybind11::gil_scoped_release no_gil;
      return std::apply(Function, values);
    }());
    END_HANDLE_TH_ERRORS
  }

  template <size_t... I>
  static bool read(std::tuple<std::decay_t<Args>...>& values, std::index_sequence<I...>, PyObject* const* objects) {
    return (Argument<std::decay_t<Args>>::read(objects[I], std::get<I>(values)) && ...);
  }
};

}  // namespace pytorch_ext
