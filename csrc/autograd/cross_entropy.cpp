#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../ops.h"
#include "class_distribution.h"
#include "composition.h"
#include "node.h"
#include "one_pass.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Mask = std::array<bool, 2>;

class CrossEntropyBackwardFunction : public torch::autograd::Function<CrossEntropyBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& target,
                               const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                               double label_smoothing, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, target, or_undefined(weight)});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    ctx->saved_data["mask"] = mask;
    auto [dinput, dtarget] =
        ops::cross_entropy_backward(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask);
    return chosen(mask, {dinput, dtarget});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<Mask>(), chosen_grads);
    const int64_t reduction = ctx->saved_data["reduction"].toInt(), ignore = ctx->saved_data["ignore_index"].toInt();
    const double smoothing = ctx->saved_data["label_smoothing"].toDouble();
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) -> variable_list {
      const Tensor &input = t[1], &target = t[2], &weight = t[3];
      const int64_t dim = class_dimension(input);
      auto [q, scale] = class_distribution(t[0], input, target, weight, reduction, ignore, smoothing);
      Tensor dinput = (at::softmax(input, dim) * q.sum(dim, /*keepdim=*/true) - q) * scale;
      if (!grads[1].defined()) return {dinput, Tensor()};
      Tensor slope = -at::log_softmax(input, dim) * scale;
      if (smoothing > 0) slope = slope * (1 - smoothing);
      if (weight.defined()) slope = slope * along_classes(weight, input);
      return {dinput, slope};
    });
    return {found[0], found[1], found[2], {}, {}, {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                  double label_smoothing, Mask mask) {
  if (!any_requires_grad(grad, input, target)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::cross_entropy_backward(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask);
  }
  mask[1] = mask[1] && target.is_floating_point();
  auto found = at_their_places(mask, CrossEntropyBackwardFunction::apply(grad, input, target, weight, reduction,
                                                                         ignore_index, label_smoothing, mask));
  return {found[0], found[1]};
}

struct CrossEntropyGradients {
  static constexpr const char* name = "CrossEntropyBackward";
  static constexpr size_t inputs = 2, saved = 3;
  int64_t reduction, ignore_index;
  double label_smoothing;
  InAdvance dinput_in_advance;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(reduction), visit(ignore_index), visit(label_smoothing);
  }

  std::array<Tensor, 2> operator()(const Tensor& grad, std::array<Tensor, 3>& tensors, const Needs& needs) {
    const auto& [input, target, weight] = tensors;
    Mask mask = {needs[0], target.is_floating_point() && needs[1]};
    Tensor dinput, dtarget;
    if (mask[0] && !at::GradMode::is_enabled()) dinput = dinput_in_advance.take(grad);
    if (dinput.defined()) {
      mask[0] = false;
      if (!is_one(grad))
        ops::cross_entropy_backward_into(grad, dinput, input, target, or_none(weight), reduction, ignore_index,
                                         label_smoothing);
    }
    if (mask[0] || mask[1]) {
      auto [computed, of_target] = ops::cross_entropy_backward(grad, input, target, or_none(weight), reduction,
                                                               ignore_index, label_smoothing, mask);
      if (mask[0]) dinput = computed;
      dtarget = of_target;
    }
    return {dinput, dtarget};
  }
};

Tensor cross_entropy_below(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                           int64_t ignore_index, double label_smoothing) {
  return ops::cross_entropy_inference(input, target, weight, reduction, ignore_index, label_smoothing);
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index, double label_smoothing) {
  TORCH_CHECK(!any_requires_grad(weight),
              "cross_entropy: expected a weight that requires no gradient, got one that does");
  if (!any_requires_grad(input, target)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return cross_entropy_below(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  const bool in_advance = reduction != at::Reduction::None && input.requires_grad() && computes_in_advance(input);
  auto [loss, dinput] = below_autograd([&] {
    return ops::cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, in_advance);
  });
  CrossEntropyGradients gradients{reduction, ignore_index, label_smoothing};
  if (in_advance) gradients.dinput_in_advance.keep(std::move(dinput));
  return recorded(loss, std::move(gradients), {input, target}, {input, target, or_undefined(weight)});
}

// Stock computes this loss in float32 under autocast.
template <c10::DeviceType device>
Tensor cross_entropy_autocast(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                              int64_t reduction, int64_t ignore_index, double label_smoothing) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return ops::cross_entropy(cached_cast(at::kFloat, input, device), cached_cast(at::kFloat, target, device),
                            cached_cast(at::kFloat, weight, device), reduction, ignore_index, label_smoothing);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("cross_entropy", &pytorch_ext::cross_entropy);
  m.impl("cross_entropy_backward", &pytorch_ext::cross_entropy_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy", &pytorch_ext::cross_entropy_below);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) {
  m.impl("cross_entropy", &pytorch_ext::cross_entropy_autocast<c10::kCPU>);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) {
  m.impl("cross_entropy", &pytorch_ext::cross_entropy_autocast<c10::kCUDA>);
}
