#include "dropout.h"

#include <torch/library.h>

#include "../ops.h"
#include "composition.h"

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
class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, double p, const Tensor& key) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({key});
    ctx->saved_data["p"] = p;
    return ops::dropout_forward(input, p, key);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}};
    return {ops::dropout(grads[0], ctx->saved_data["p"].toDouble(), ctx->get_saved_variables()[0]), {}, {}};
  }
};

Tensor dropout_below(const Tensor& input, double p, const Tensor& key) { return ops::dropout_forward(input, p, key); }

Tensor dropout(const Tensor& input, double p, const Tensor& key) {
  if (any_requires_grad(input)) return DropoutFunction::apply(input, p, key);
  at::AutoDispatchBelowADInplaceOrView below;
  return dropout_below(input, p, key);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) { m.impl("dropout", &pytorch_ext::dropout); }
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("dropout", &pytorch_ext::dropout_below); }
