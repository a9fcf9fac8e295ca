#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../ops.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {
namespace {

using at::Tensor;

class MatmulBackwardFunction : public torch::autograd::Function<MatmulBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& other,
                               std::array<bool, 2> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, input, other});
    ctx->saved_data["mask"] = mask;
    auto [dinput, dother] = ops::matmul_backward(grad, input, other, mask);
    return chosen(mask, {dinput, dother});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<std::array<bool, 2>>(), chosen_grads);
    auto compose = [](const variable_list& t) -> variable_list {
      const Tensor &input = t[1], &other = t[2];
      Tensor g = t[0], A = input, B = other;
      if (other.dim() == 1) g = g.unsqueeze(-1), B = B.unsqueeze(1);
      if (input.dim() == 1) g = g.unsqueeze(-2), A = A.unsqueeze(0);
      Tensor dA = at::matmul(g, B.mT()).sum_to_size_symint(A.sym_sizes());
      Tensor dB = at::matmul(A.mT(), g).sum_to_size_symint(B.sym_sizes());
      return {dA.reshape_symint(input.sym_sizes()), dB.reshape_symint(other.sym_sizes())};
    };
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, compose, Composed::in_own_dtype);
    return {found[0], found[1], found[2], {}};
  }
};

std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad, const Tensor& input, const Tensor& other,
                                           std::array<bool, 2> mask) {
  if (!any_requires_grad(grad, input, other)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::matmul_backward(grad, input, other, mask);
  }
  auto found = at_their_places(mask, MatmulBackwardFunction::apply(grad, input, other, mask));
  return {found[0], found[1]};
}

struct MatmulGradients {
  static constexpr const char* name = "MatmulBackward";
  static constexpr size_t inputs = 2, saved = 2;

  template <class Visit>
  void each(Visit&&) const {}

  std::array<Tensor, 2> operator()(const Tensor& grad, std::array<Tensor, 2>& tensors, const Needs& needs) const {
    auto [dinput, dother] = ops::matmul_backward(grad, tensors[0], tensors[1], {needs[0], needs[1]});
    return {dinput, dother};
  }
};

Tensor matmul_below(const Tensor& input, const Tensor& other) { return ops::matmul_forward(input, other); }

Tensor matmul(const Tensor& input, const Tensor& other) {
  Tensor output = below_autograd([&] { return matmul_below(input, other); });
  if (!any_requires_grad(input, other)) return output;
  return recorded(output, MatmulGradients{}, {input, other}, {to_save(input, other), to_save(other, input)});
}

template <c10::DeviceType device>
Tensor matmul_autocast(const Tensor& input, const Tensor& other) {
  using at::autocast::cached_cast;
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  auto dtype = at::autocast::get_lower_precision_fp_from_device_type(device);
  return ops::matmul(cached_cast(dtype, input, device), cached_cast(dtype, other, device));
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("matmul", &pytorch_ext::matmul);
  m.impl("matmul_backward", &pytorch_ext::matmul_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("matmul", &pytorch_ext::matmul_below); }
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCPU, m) { m.impl("matmul", &pytorch_ext::matmul_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) { m.impl("matmul", &pytorch_ext::matmul_autocast<c10::kCUDA>); }
