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
using ops::OptionalType;
using Mask = std::array<bool, 3>;

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

struct LinearCrossEntropyGradients {
  static constexpr const char* name = "LinearCrossEntropyBackward";
  static constexpr size_t inputs = 3, saved = 8;
  int64_t reduction, ignore_index;
  double label_smoothing;
  std::array<InAdvance, 3> in_advance;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(reduction), visit(ignore_index), visit(label_smoothing);
  }

  std::array<Tensor, 3> operator()(const Tensor& grad, std::array<Tensor, 8>& tensors, const Needs& needs) {
    const auto& [input, linear_weight, linear_bias, target, weight, dx_traced, dw_traced, db_traced] = tensors;
    std::array<Tensor, 3> result;
    Mask mask;
    for (int i = 0; i < 3; i++) {
      mask[i] = needs[i] && (i < 2 || linear_bias.defined());
      if (mask[i]) result[i] = left_by_forward(i, tensors[5 + i], grad);
      mask[i] = mask[i] && !result[i].defined();
    }
    if (!mask[0] && !mask[1] && !mask[2]) return result;
    auto [dx, dw, db] =
        ops::linear_cross_entropy_backward(grad, input, linear_weight, target, or_none(linear_bias), or_none(weight),
                                           reduction, ignore_index, label_smoothing, mask);
    const std::array<Tensor, 3> computed = {dx, dw, db};
    for (int i = 0; i < 3; i++)
      if (mask[i]) result[i] = computed[i];
    return result;
  }

 private:
  // The gradient that the forward pass has left, times the loss's; undefined where it left none.
  Tensor left_by_forward(int i, const Tensor& traced, const Tensor& grad) {
    if (at::GradMode::is_enabled()) return {};
    if (traced.defined()) return at::mul(traced, grad);
    Tensor found = in_advance[i].take(grad);
    return found.defined() && !is_one(grad) ? found.mul_(grad) : found;
  }
};

Tensor linear_cross_entropy_below(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                  const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                                  int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  return ops::linear_cross_entropy_inference(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                                             label_smoothing, dtype);
}

Tensor linear_cross_entropy(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                            const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                            int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  TORCH_CHECK(!any_requires_grad(target, weight),
              "linear_cross_entropy: expected a target and a weight that require no gradient, got one that does");
  if (!any_requires_grad(input, linear_weight, linear_bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return linear_cross_entropy_below(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                                      label_smoothing, dtype);
  }
  const bool in_advance = reduction != at::Reduction::None;
  const Mask mask = {in_advance && input.requires_grad(), in_advance && linear_weight.requires_grad(),
                     in_advance && requires_grad(linear_bias)};
  auto [loss, dx, dw, db] = below_autograd([&] {
    return ops::linear_cross_entropy_forward(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                                             label_smoothing, dtype, mask);
  });
  LinearCrossEntropyGradients gradients{reduction, ignore_index, label_smoothing};
  // A graph that is traced has its own copies; otherwise the one backward pass that is usual gets the memory itself.
  std::array<Tensor, 3> traced, found = {dx, dw, db};
  const bool keeps = holds_numbers(input);
  for (int i = 0; i < 3; i++) {
    if (!mask[i]) continue;
    if (keeps)
      gradients.in_advance[i].keep(std::move(found[i]));
    else
      traced[i] = found[i];
  }
  const Tensor bias = or_undefined(linear_bias);
  return recorded(loss, std::move(gradients), {input, linear_weight, bias},
                  {input, linear_weight, bias, target, or_undefined(weight), traced[0], traced[1], traced[2]});
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
