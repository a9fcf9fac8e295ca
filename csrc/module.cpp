// The Python module: the functions that eager calls take, and what goes around the dispatcher.
#include <torch/csrc/utils/pybind.h>

#include "autograd/dropout.h"
#include "cpu/capability.h"
#include "eager.h"
#include "launch/covers.h"
#include "launch/functions.h"
#include "launch/new_tensors.h"
#include "launch/optimizers.h"
#include "train/train_step.h"
#include "launch/reduce.h"

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

  eager<&ops::linear, &covers_linear>::define(m, "linear");
  eager<&ops::matmul, &covers_matmul>::define(m, "matmul");
  eager<&ops::scaled_dot_product_attention, &covers_attention>::define(m, "scaled_dot_product_attention");
  eager<&ops::softmax, &covers_softmax>::define(m, "softmax");
  eager<&ops::log_softmax, &covers_softmax>::define(m, "log_softmax");
  eager<&ops::activation, &covers_activation>::define(m, "activation");
  eager<&dropout_with_new_key, &covers_dropout>::define(m, "dropout");
  m.def("sum_to_size", [](const at::Tensor& t, const std::vector<int64_t>& sizes) { return sum_to_size(t, sizes); });
  eager<&ops::mse_loss, &covers_mse_loss>::define(m, "mse_loss");
  eager<&ops::mse_loss, &covers_mse_loss_broadcast>::define(m, "mse_loss_broadcast");
  eager<&ops::binary_cross_entropy, &covers_binary_cross_entropy>::define(m, "binary_cross_entropy");
  eager<&ops::binary_cross_entropy_with_logits, &covers_binary_cross_entropy_with_logits>::define(
      m, "binary_cross_entropy_with_logits");
  eager<&ops::cross_entropy, &covers_cross_entropy>::define(m, "cross_entropy");
  eager<&ops::linear_cross_entropy, &covers_linear_cross_entropy>::define(m, "linear_cross_entropy");
  eager<&ops::nll_loss, &covers_nll_loss>::define(m, "nll_loss");
  m.def("free_kept_memory", &free_kept_memory);
  define_functions(m);
  define_optimizers(m);
  train::define_train_step(m);
}
