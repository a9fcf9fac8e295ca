#include <torch/library.h>

#include "../launch/activation_names.h"
#include "../ops.h"
#include "activation_composition.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {
namespace {

using at::Tensor;

class ActivationBackwardFunction : public torch::autograd::Function<ActivationBackwardFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& saved, std::string_view kind) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, saved});
    ctx->saved_data["kind"] = std::string(kind);
    return ops::activation_backward(grad, saved, kind);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kind = activation_named("activation", ctx->saved_data["kind"].toStringRef());
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) -> variable_list {
      return {composed_activation_gradient(t[0], t[1], kind)};
    });
    return {found[0], found[1], {}};
  }
};

Tensor activation_backward(const Tensor& grad, const Tensor& saved, std::string_view kind) {
  if (any_requires_grad(grad, saved)) return ActivationBackwardFunction::apply(grad, saved, kind);
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::activation_backward(grad, saved, kind);
}

struct ActivationGradients {
  static constexpr const char* name = "ActivationBackward";
  static constexpr size_t inputs = 1, saved = 1;
  Activation kind;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(static_cast<int64_t>(kind));
  }

  std::array<Tensor, 1> operator()(const Tensor& grad, std::array<Tensor, 1>& tensors, const Needs&) const {
    return {ops::activation_backward(grad, tensors[0], activation_name(kind))};
  }
};

Tensor activation_below(const Tensor& input, std::string_view kind) { return ops::activation_forward(input, kind); }

Tensor activation(const Tensor& input, std::string_view kind) {
  Tensor output = below_autograd([&] { return activation_below(input, kind); });
  if (!any_requires_grad(input)) return output;
  const Activation activation = activation_named("activation", kind);
  return recorded(output, ActivationGradients{activation}, {input}, {saves_input(activation) ? input : output});
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("activation", &pytorch_ext::activation);
  m.impl("activation_backward", &pytorch_ext::activation_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("activation", &pytorch_ext::activation_below); }
