// mse_loss, binary_cross_entropy and binary_cross_entropy_with_logits, and their derivatives.
#include "../launch/elementwise_loss.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Reduction.h>
#include <torch/library.h>

#include "../ops.h"
#include "composition.h"
#include "node.h"
#include "one_pass.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Mask = std::array<bool, 2>;

// (d value / d input, d value / d target) of every element, in stock operators.
std::pair<Tensor, Tensor> composed_slopes(const Tensor& x, const Tensor& y, const Tensor& pos_weight,
                                          ElementwiseLoss loss) {
  switch (loss) {
    case ElementwiseLoss::mse_loss: {
      Tensor slope = 2 * (x - y);
      return {slope, -slope};
    }
    case ElementwiseLoss::binary_cross_entropy:
      return {(x - y) / ((1 - x) * x).clamp_min(1e-12), at::log1p(-x) - at::log(x)};
    case ElementwiseLoss::binary_cross_entropy_with_logits: {
      if (!pos_weight.defined()) return {at::sigmoid(x) - y, -x};
      Tensor extra = pos_weight - 1;
      return {(1 + extra * y) * at::sigmoid(x) - pos_weight * y, -extra * at::log_sigmoid(x) - x};
    }
  }
  return {};
}

class ElementwiseLossBackwardFunction : public torch::autograd::Function<ElementwiseLossBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& target,
                               const OptionalTensor& weight, const OptionalTensor& pos_weight, std::string_view loss,
                               int64_t reduction, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, target, or_undefined(weight), or_undefined(pos_weight)});
    ctx->saved_data["loss"] = std::string(loss);
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["mask"] = mask;
    auto [dinput, dtarget] =
        ops::elementwise_loss_backward(grad, input, target, weight, pos_weight, loss, reduction, mask);
    return chosen(mask, {dinput, dtarget});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<Mask>(), chosen_grads);
    const auto loss = elementwise_loss_named(ctx->saved_data["loss"].toStringRef());
    const auto reduction = ctx->saved_data["reduction"].toInt();
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) -> variable_list {
      const Tensor &input = t[1], &target = t[2], &weight = t[3];
      auto [dinput, dtarget] = composed_slopes(input, target, t[4], loss);
      Tensor scale = t[0];
      if (reduction == at::Reduction::Mean)
        scale = weight.defined() && loss == ElementwiseLoss::mse_loss
                    ? scale / weight.sum()
                    : scale / at::Scalar((input - target).sym_numel());
      if (weight.defined()) scale = scale * weight;
      return {at::sum_to(dinput * scale, input.sym_sizes()), at::sum_to(dtarget * scale, target.sym_sizes())};
    });
    return {found[0], found[1], found[2], {}, {}, {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor> elementwise_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                     const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                                     std::string_view loss, int64_t reduction, Mask mask) {
  if (!any_requires_grad(grad, input, target)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::elementwise_loss_backward(grad, input, target, weight, pos_weight, loss, reduction, mask);
  }
  auto found = at_their_places(
      mask, ElementwiseLossBackwardFunction::apply(grad, input, target, weight, pos_weight, loss, reduction, mask));
  return {found[0], found[1]};
}

struct ElementwiseLossGradients {
  static constexpr const char* name = "ElementwiseLossBackward";
  static constexpr size_t inputs = 2, saved = 4;
  ElementwiseLoss loss;
  int64_t reduction;
  std::array<InAdvance, 2> in_advance;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(static_cast<int64_t>(loss)), visit(reduction);
  }

  std::array<Tensor, 2> operator()(const Tensor& grad, std::array<Tensor, 4>& tensors, const Needs& needs) {
    const auto& [input, target, weight, pos_weight] = tensors;
    const auto loss_name = elementwise_loss_name(loss);
    std::array<Tensor, 2> result;
    Mask mask = {needs[0], needs[1]};
    for (int i = 0; i < 2; i++) {
      if (mask[i] && !at::GradMode::is_enabled()) result[i] = in_advance[i].take(grad);
      mask[i] = mask[i] && !result[i].defined();
    }
    if ((result[0].defined() || result[1].defined()) && !is_one(grad))
      ops::elementwise_loss_backward_into(grad, or_none(result[0]), or_none(result[1]), input, target, or_none(weight),
                                          or_none(pos_weight), loss_name, reduction);
    if (mask[0] || mask[1]) {
      auto [dinput, dtarget] = ops::elementwise_loss_backward(grad, input, target, or_none(weight), or_none(pos_weight),
                                                              loss_name, reduction, mask);
      if (mask[0]) result[0] = dinput;
      if (mask[1]) result[1] = dtarget;
    }
    return result;
  }
};

Tensor value_only(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  return ops::elementwise_loss_inference(input, target, weight, pos_weight, loss, reduction);
}

Tensor differentiable(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                      const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  TORCH_CHECK(!any_requires_grad(weight, pos_weight), loss,
              ": expected weights that require no gradient, got one that does");
  if (!any_requires_grad(input, target)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return value_only(input, target, weight, pos_weight, loss, reduction);
  }
  const bool in_advance =
      reduction != at::Reduction::None && computes_in_advance(input) && input.sizes() == target.sizes();
  const Mask mask = {in_advance && input.requires_grad(), in_advance && target.requires_grad()};
  auto [value, dinput, dtarget] = below_autograd(
      [&] { return ops::elementwise_loss_forward(input, target, weight, pos_weight, loss, reduction, mask); });
  ElementwiseLossGradients gradients{elementwise_loss_named(loss), reduction};
  if (mask[0]) gradients.in_advance[0].keep(std::move(dinput));
  if (mask[1]) gradients.in_advance[1].keep(std::move(dtarget));
  return recorded(value, std::move(gradients), {input, target},
                  {input, target, or_undefined(weight), or_undefined(pos_weight)});
}

// The public operator of that loss, for whatever keys are left.
Tensor dispatched(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  switch (elementwise_loss_named(loss)) {
    case ElementwiseLoss::mse_loss: return ops::mse_loss(input, target, weight, reduction);
    case ElementwiseLoss::binary_cross_entropy: return ops::binary_cross_entropy(input, target, weight, reduction);
    case ElementwiseLoss::binary_cross_entropy_with_logits:
      return ops::binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction);
  }
  return {};
}

// Stock computes these losses in float32 under autocast.
template <c10::DeviceType device>
Tensor in_float32(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return dispatched(cached_cast(at::kFloat, input, device), cached_cast(at::kFloat, target, device),
                    cached_cast(at::kFloat, weight, device), cached_cast(at::kFloat, pos_weight, device), loss,
                    reduction);
}

// The three operators, each on one of the ways above.
template <auto way>
Tensor mse_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction) {
  return way(input, target, weight, std::nullopt, "mse_loss", reduction);
}
template <auto way>
Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                            int64_t reduction) {
  return way(input, target, weight, std::nullopt, "binary_cross_entropy", reduction);
}
template <auto way>
Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const OptionalTensor& pos_weight, int64_t reduction) {
  return way(input, target, weight, pos_weight, "binary_cross_entropy_with_logits", reduction);
}

template <auto way>
void register_losses(torch::Library& m) {
  m.impl("mse_loss", &mse_loss<way>);
  m.impl("binary_cross_entropy", &binary_cross_entropy<way>);
  m.impl("binary_cross_entropy_with_logits", &binary_cross_entropy_with_logits<way>);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  pytorch_ext::register_losses<&pytorch_ext::differentiable>(m);
  m.impl("elementwise_loss_backward", &pytorch_ext::elementwise_loss_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  pytorch_ext::register_losses<&pytorch_ext::value_only>(m);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) {
  pytorch_ext::register_losses<&pytorch_ext::in_float32<c10::kCPU>>(m);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) {
  pytorch_ext::register_losses<&pytorch_ext::in_float32<c10::kCUDA>>(m);
}
