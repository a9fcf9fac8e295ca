// Every operator's schema and the Python module: the table of contents of the native library.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "cpu/capability.h"
#include "eager.h"
#include "launch/covers.h"
#include "launch/optimizers.h"

TORCH_LIBRARY(pytorch_ext, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor");
  m.def("linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor)");
  m.def("linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? saved, str activation, bool[3] mask)"
        " -> (Tensor, Tensor, Tensor)");
}

namespace pytorch_ext::ops {
namespace {

// The operator `name`, looked up once.
template <class Function>
c10::TypedOperatorHandle<Function> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

#define CALL(name, ...)                                                 \
  static const auto op = find<decltype(name)>("pytorch_ext::" #name); \
  return op.call(__VA_ARGS__)

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation) {
  CALL(linear, input, weight, bias, activation);
}
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          std::string_view activation) {
  CALL(linear_forward, input, weight, bias, activation);
}
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask) {
  CALL(linear_backward, grad, input, weight, saved, activation, mask);
}

#undef CALL

}  // namespace pytorch_ext::ops

namespace pytorch_ext {
namespace {

const char* const CAPABILITY_NAMES[] = {"baseline", "avx2", "avx512"};

std::vector<std::string> available_capabilities() {
  return {CAPABILITY_NAMES, CAPABILITY_NAMES + static_cast<int>(cpu::best_capability()) + 1};
}

void set_capability(const std::string& name) {
  for (int i = 0; i < 3; i++)
    if (name == CAPABILITY_NAMES[i] && cpu::set_capability(static_cast<cpu::Capability>(i))) return;
  throw pybind11::value_error("set_capability: expected an instruction set of this processor, got " + name);
}

}  // namespace
}  // namespace pytorch_ext

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace pytorch_ext;
  m.def("capability", [] { return CAPABILITY_NAMES[static_cast<int>(cpu::capability())]; });
  m.def("available_capabilities", &available_capabilities);
  m.def("set_capability", &set_capability);

  m.def("linear", &eager<&ops::linear, &covers_linear>::call);
  define_optimizers(m);
}
