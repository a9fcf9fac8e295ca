#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../launch/activation_names.h"
#include "../launch/covers.h"
#include "../ops.h"
#include "activation_composition.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// (..., C) as a matrix; without columns a size of -1 would be ambiguous.
Tensor rows_of(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : at::flatten(t, 0, -2); }

class LinearBackwardFunction : public torch::autograd::Function<LinearBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& saved, const std::string& activation, std::array<bool, 3> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, weight, or_undefined(saved)});
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["mask"] = mask;
    auto [dx, dw, db] = ops::linear_backward(grad, input, weight, saved, activation, mask);
    return chosen(mask, {dx, dw, db});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<std::array<bool, 3>>(), chosen_grads);
    auto kind = activation_named("linear", ctx->saved_data["activation"].toStringRef());
    auto compose = [&](const variable_list& t) -> variable_list {
      const Tensor &grad = t[0], &input = t[1], &weight = t[2];
      Tensor dz = composed_activation_gradient(grad, t[3], kind);
      const Tensor rows = rows_of(dz);
      return {at::matmul(dz, weight), at::matmul(rows.t(), rows_of(input)), rows.sum(0)};
    };
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, compose, Composed::in_own_dtype);
    return {found[0], found[1], found[2], found[3], {}, {}};
  }
};

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask) {
  if (!any_requires_grad(grad, input, weight, saved)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::linear_backward(grad, input, weight, saved, activation, mask);
  }
  auto found =
      at_their_places(mask, LinearBackwardFunction::apply(grad, input, weight, saved, std::string(activation), mask));
  return {found[0], found[1], found[2]};
}

struct LinearGradients {
  static constexpr const char* name = "LinearBackward";
  static constexpr size_t inputs = 3, saved = 4;
  Activation kind;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(static_cast<int64_t>(kind));
  }

  std::array<Tensor, 3> operator()(const Tensor& grad, std::array<Tensor, 4>& tensors, const Needs& needs) const {
    const auto& [input, weight, of_forward, bias] = tensors;
    Tensor saved = of_forward;
    if (saved.defined() && at::GradMode::is_enabled()) {
      if (saves_input(kind))
        saved = ops::linear(input, weight, or_none(bias), "none");
      else if (is_relu_mask(saved))
        saved = ops::linear(input, weight, or_none(bias), activation_name(kind));
    }
    auto [dx, dw, db] = ops::linear_backward(grad, input, weight, or_none(saved), activation_name(kind),
                                             {needs[0], needs[1], needs[2]});
    return {dx, dw, db};
  }
};

Tensor linear_below(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    std::string_view activation) {
  return ops::linear_inference(input, weight, bias, activation);
}

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation) {
  if (!any_requires_grad(input, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return linear_below(input, weight, bias, activation);
  }
  auto [output, saved] = below_autograd([&] { return ops::linear_forward(input, weight, bias, activation); });
  const Activation kind = activation_named("linear", activation);
  const bool saves_output = kind != Activation::none && !saved.defined();
  // The bias is needed only to form z or y again, differentiably, for a second derivative.
  const bool forms_it_again = saved.defined();
  return recorded(output, LinearGradients{kind}, {input, weight, or_undefined(bias)},
                  {forms_it_again ? input : to_save(input, weight), forms_it_again ? weight : to_save(weight, input),
                   saves_output ? output : saved, forms_it_again ? or_undefined(bias) : Tensor()});
}

template <c10::DeviceType device>
Tensor linear_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       std::string_view activation) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  auto dtype = at::autocast::get_lower_precision_fp_from_device_type(device);
  return ops::linear(cached_cast(dtype, input, device), cached_cast(dtype, weight, device),
                     cached_cast(dtype, bias, device), activation);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("linear", &pytorch_ext::linear);
  m.impl("linear_backward", &pytorch_ext::linear_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("linear", &pytorch_ext::linear_below); }
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) { m.impl("linear", &pytorch_ext::linear_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) { m.impl("linear", &pytorch_ext::linear_autocast<c10::kCUDA>); }
