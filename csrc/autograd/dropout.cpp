#include "dropout.h"

#include <torch/library.h>

#include "../ops.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {

using at::Tensor;

Tensor dropout_with_new_key(const Tensor& input, double p, bool training, bool inplace) {
  if (!training || p == 0 || input.numel() == 0) return input;
  Tensor output = ops::dropout(input, p, ops::dropout_key());
  return inplace ? input.copy_(output) : output;
}

namespace {

// The mask is computed again from the key: nothing but the key is saved. The gradient is dropout's own value with g for
// x, so derivatives of every order are.
struct DropoutGradients {
  static constexpr const char* name = "DropoutBackward";
  static constexpr size_t inputs = 1, saved = 1;
  double p;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(p);
  }

  std::array<Tensor, 1> operator()(const Tensor& grad, std::array<Tensor, 1>& tensors, const Needs&) const {
    return {ops::dropout(grad, p, tensors[0])};
  }
};

Tensor dropout_below(const Tensor& input, double p, const Tensor& key) { return ops::dropout_forward(input, p, key); }

Tensor dropout(const Tensor& input, double p, const Tensor& key) {
  Tensor output = below_autograd([&] { return dropout_below(input, p, key); });
  return any_requires_grad(input) ? recorded(output, DropoutGradients{p}, {input}, {key}) : output;
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) { m.impl("dropout", &pytorch_ext::dropout); }
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("dropout", &pytorch_ext::dropout_below); }
