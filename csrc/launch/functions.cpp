#include "functions.h"

#include <torch/csrc/autograd/python_variable.h>

#include "../cpu/elementwise.h"
#include "kernel.h"
#include "self_test.h"
#include "tensor_cores.h"

namespace pytorch_ext {
namespace {

Tensor apply_named(const std::string& name, const Tensor& input) {
  int f = 0;
  while (f < FUNCTION_COUNT && name != FUNCTION_NAMES[f]) f++;
  if (f == FUNCTION_COUNT)
    throw pybind11::value_error("apply_function: expected a function of the contract, got " + name);
  TORCH_CHECK(input.is_contiguous() && (input.dtype() == at::kFloat || input.dtype() == at::kDouble),
              "apply_function: expected a contiguous float32 or float64 tensor, got ", input.dtype());
  Tensor output = empty(input.sizes(), input);
  const auto function = static_cast<Function>(f);
  if (input.dtype() == at::kFloat)
    RUN_KERNEL(input, apply_function<float>)(function, input.numel(), data<float>(input), mutable_data<float>(output));
  else
    RUN_KERNEL(input, apply_function<double>)(function, input.numel(), data<double>(input),
                                              mutable_data<double>(output));
  return output;
}

}  // namespace

void define_functions(pybind11::module_& m) {
  m.def("apply_function", &apply_named);
  m.def("has_kernels", &has_kernels);
  m.def("is_stock_product", &is_stock_product);
  m.def(
      "self_test", [](const std::string& device) { return self_test(at::Device(device)); },
      pybind11::arg("device") = "cpu");
  m.def(
      "self_test_hashes", [](const std::string& device) { return self_test_hashes(at::Device(device)); },
      pybind11::arg("device") = "cpu");
}

}  // namespace pytorch_ext
