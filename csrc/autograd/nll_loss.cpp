#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../ops.h"
#include "class_distribution.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

class NllLossBackwardFunction : public torch::autograd::Function<NllLossBackwardFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& target,
                        const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, target, or_undefined(weight)});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    return ops::nll_loss_backward(grad, input, target, weight, reduction, ignore_index);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const int64_t reduction = ctx->saved_data["reduction"].toInt(), ignore = ctx->saved_data["ignore_index"].toInt();
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) -> variable_list {
      auto [q, scale] = class_distribution(t[0], t[1], t[2], t[3], reduction, ignore, /*label_smoothing=*/0);
      return {-q * scale};
    });
    return {found[0], found[1], {}, {}, {}, {}};
  }
};

Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index) {
  if (any_requires_grad(grad))  // the only operand its value depends on differentiably
    return NllLossBackwardFunction::apply(grad, input, target, weight, reduction, ignore_index);
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::nll_loss_backward(grad, input, target, weight, reduction, ignore_index);
}

struct NllLossGradients {
  static constexpr const char* name = "NllLossBackward";
  static constexpr size_t inputs = 1, saved = 3;
  int64_t reduction, ignore_index;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(reduction), visit(ignore_index);
  }

  std::array<Tensor, 1> operator()(const Tensor& grad, std::array<Tensor, 3>& tensors, const Needs&) const {
    const auto& [input, target, weight] = tensors;
    return {ops::nll_loss_backward(grad, input, target, or_none(weight), reduction, ignore_index)};
  }
};

Tensor nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                int64_t ignore_index) {
  TORCH_CHECK(!any_requires_grad(weight), "nll_loss: expected a weight that requires no gradient, got one that does");
  Tensor loss = below_autograd([&] { return ops::nll_loss_forward(input, target, weight, reduction, ignore_index); });
  if (!any_requires_grad(input)) return loss;
  return recorded(loss, NllLossGradients{reduction, ignore_index}, {input}, {input, target, or_undefined(weight)});
}

// Stock computes this loss in float32 under autocast.
template <c10::DeviceType device>
Tensor nll_loss_autocast(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                         int64_t ignore_index) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return ops::nll_loss(cached_cast(at::kFloat, input, device), target, cached_cast(at::kFloat, weight, device),
                       reduction, ignore_index);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("nll_loss", &pytorch_ext::nll_loss);
  m.impl("nll_loss_backward", &pytorch_ext::nll_loss_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  m.impl("nll_loss", &pytorch_ext::ops::nll_loss_forward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) { m.impl("nll_loss", &pytorch_ext::nll_loss_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) { m.impl("nll_loss", &pytorch_ext::nll_loss_autocast<c10::kCUDA>); }
