#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../ops.h"
#include "class_distribution.h"
#include "composition.h"
#include "one_pass.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ops::OptionalType;
using Mask = std::array<bool, 3>;

constexpr const char* GRADIENTS[] = {"dinput", "dlinear_weight", "dlinear_bias"};

// The three gradients in stock operators; t: grad, input, linear_weight, linear_bias, target, weight.
variable_list composed_gradients(const variable_list& t, int64_t reduction, int64_t ignore_index,
                                 double label_smoothing) {
  const c10::SymInt features = t[2].sym_size(-1);
  const Tensor x = t[1].dim() == 1 ? t[1].unsqueeze(0) : t[1], W = t[2].reshape_symint({-1, features});
  const Tensor target = t[1].dim() == 1 ? t[4].unsqueeze(0) : t[4];
  const Tensor grad = t[1].dim() == 1 && reduction == at::Reduction::None ? t[0].unsqueeze(0) : t[0];
  Tensor logits = at::matmul(x, W.t());
  if (t[3].defined()) logits = logits + t[3].reshape({-1});
  c10::SymDimVector sizes{x.sym_size(0)};
  for (int64_t d = 0; d + 1 < t[2].dim(); d++) sizes.push_back(t[2].sym_size(d));
  logits = logits.reshape_symint(sizes);
  auto [q, scale] = class_distribution(grad, logits, target, t[5], reduction, ignore_index, label_smoothing);
  Tensor dlogits = (at::softmax(logits, 1) * q.sum(1, /*keepdim=*/true) - q) * scale;
  dlogits = dlogits.reshape_symint({x.sym_size(0), W.sym_size(0)});
  Tensor dbias;
  if (t[3].defined()) dbias = dlogits.sum(0).reshape_symint(t[3].sym_sizes());
  return {at::matmul(dlogits, W).reshape_symint(t[1].sym_sizes()),
          at::matmul(dlogits.t(), x).reshape_symint(t[2].sym_sizes()), dbias};
}

class LinearCrossEntropyBackwardFunction : public torch::autograd::Function<LinearCrossEntropyBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input,
                               const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
                               const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                               double label_smoothing, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, linear_weight, or_undefined(linear_bias), target, or_undefined(weight)});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    ctx->saved_data["mask"] = mask;
    auto [dx, dw, db] = ops::linear_cross_entropy_backward(grad, input, linear_weight, target, linear_bias, weight,
                                                           reduction, ignore_index, label_smoothing, mask);
    return chosen(mask, {dx, dw, db});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<Mask>(), chosen_grads);
    const int64_t reduction = ctx->saved_data["reduction"].toInt(), ignore = ctx->saved_data["ignore_index"].toInt();
    const double smoothing = ctx->saved_data["label_smoothing"].toDouble();
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) {
      return composed_gradients(t, reduction, ignore, smoothing);
    });
    return {found[0], found[1], found[2], {}, found[3], {}, {}, {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& linear_weight, const Tensor& target,
                                                                 const OptionalTensor& linear_bias,
                                                                 const OptionalTensor& weight, int64_t reduction,
                                                                 int64_t ignore_index, double label_smoothing,
                                                                 Mask mask) {
  mask[2] = mask[2] && linear_bias;
  if (!any_requires_grad(grad, input, linear_weight, linear_bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::linear_cross_entropy_backward(grad, input, linear_weight, target, linear_bias, weight, reduction,
                                              ignore_index, label_smoothing, mask);
  }
  auto found = at_their_places(
      mask, LinearCrossEntropyBackwardFunction::apply(grad, input, linear_weight, target, linear_bias, weight,
                                                      reduction, ignore_index, label_smoothing, mask));
  return {found[0], found[1], found[2]};
}

class LinearCrossEntropyFunction : public torch::autograd::Function<LinearCrossEntropyFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                        const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                        int64_t ignore_index, double label_smoothing, OptionalType dtype) {
    const bool in_advance = reduction != at::Reduction::None;
    const Mask mask = {in_advance && input.requires_grad(), in_advance && linear_weight.requires_grad(),
                       in_advance && requires_grad(linear_bias)};
    at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, dinput, dlinear_weight, dlinear_bias] = ops::linear_cross_entropy_forward(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, dtype, mask);
    variable_list saved = {input, linear_weight, or_undefined(linear_bias), target, or_undefined(weight)};
    const std::array<Tensor, 3> gradients = {dinput, dlinear_weight, dlinear_bias};
    // A graph that is traced has its own copies; otherwise the one backward pass that is usual gets the memory itself.
    const bool traced = !holds_numbers(input);
    for (int i = 0; i < 3; i++) {
      saved.push_back(traced && mask[i] ? gradients[i] : Tensor());
      if (!traced && mask[i]) keep(ctx, GRADIENTS[i], gradients[i]);
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    return loss;
  }

  // The gradient that the forward pass has left, times the loss's; undefined where it left none.
  static Tensor in_advance(AutogradContext* ctx, const char* name, const Tensor& saved, const Tensor& grad) {
    if (at::GradMode::is_enabled()) return {};
    if (saved.defined()) return at::mul(saved, grad);
    Tensor found = take(ctx, name, grad);
    if (found.defined() && !is_one(grad)) {
      at::AutoDispatchBelowADInplaceOrView below;
      found.mul_(grad);
    }
    return found;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(9);
    if (!grads[0].defined()) return result;
    const auto t = ctx->get_saved_variables();
    constexpr int places[] = {0, 1, 3};
    Mask mask;
    for (int i = 0; i < 3; i++) {
      mask[i] = (i < 2 || t[2].defined()) && ctx->needs_input_grad(places[i]);
      if (mask[i]) result[places[i]] = in_advance(ctx, GRADIENTS[i], t[5 + i], grads[0]);
      mask[i] = mask[i] && !result[places[i]].defined();
    }
    if (!mask[0] && !mask[1] && !mask[2]) return result;
    auto [dx, dw, db] = ops::linear_cross_entropy_backward(
        grads[0], t[0], t[1], t[3], or_none(t[2]), or_none(t[4]), ctx->saved_data["reduction"].toInt(),
        ctx->saved_data["ignore_index"].toInt(), ctx->saved_data["label_smoothing"].toDouble(), mask);
    const std::array<Tensor, 3> computed = {dx, dw, db};
    for (int i = 0; i < 3; i++)
      if (mask[i]) result[places[i]] = computed[i];
    return result;
  }
};

Tensor linear_cross_entropy_below(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                  const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                                  int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  return std::get<0>(ops::linear_cross_entropy_forward(input, linear_weight, target, linear_bias, weight, reduction,
                                                       ignore_index, label_smoothing, dtype, {false, false, false}));
}

Tensor linear_cross_entropy(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                            const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                            int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  TORCH_CHECK(!any_requires_grad(target, weight),
              "linear_cross_entropy: expected a target and a weight that require no gradient, got one that does");
  if (any_requires_grad(input, linear_weight, linear_bias))
    return LinearCrossEntropyFunction::apply(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                                             label_smoothing, dtype);
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_cross_entropy_below(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                                    label_smoothing, dtype);
}

// Under autocast the product is one of the lower precision, and the loss is computed in float32.
template <c10::DeviceType device>
Tensor linear_cross_entropy_autocast(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                     const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                                     int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto narrow = at::autocast::get_lower_precision_fp_from_device_type(device);
  const Tensor x = cached_cast(narrow, input, device);
  if (!dtype && x.scalar_type() != at::kDouble) dtype = at::kFloat;
  return ops::linear_cross_entropy(x, cached_cast(narrow, linear_weight, device),
                                   cached_cast(at::kFloat, target, device), cached_cast(narrow, linear_bias, device),
                                   cached_cast(at::kFloat, weight, device), reduction, ignore_index, label_smoothing,
                                   dtype);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("linear_cross_entropy", &pytorch_ext::linear_cross_entropy);
  m.impl("linear_cross_entropy_backward", &pytorch_ext::linear_cross_entropy_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", &pytorch_ext::linear_cross_entropy_below);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) {
  m.impl("linear_cross_entropy", &pytorch_ext::linear_cross_entropy_autocast<c10::kCPU>);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", &pytorch_ext::linear_cross_entropy_autocast<c10::kCUDA>);
}
