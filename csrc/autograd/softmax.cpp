#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../ops.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {
namespace {

using at::Tensor;
using OptionalType = std::optional<at::ScalarType>;

class SoftmaxBackwardFunction : public torch::autograd::Function<SoftmaxBackwardFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& output, int64_t dim, bool logarithm) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad, output});
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["logarithm"] = logarithm;
    return ops::softmax_backward(grad, output, dim, logarithm);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const int64_t dim = ctx->saved_data["dim"].toInt();
    const bool logarithm = ctx->saved_data["logarithm"].toBool();
    auto found = vjp_of_composition(ctx->get_saved_variables(), grads, [&](const variable_list& t) -> variable_list {
      const Tensor &g = t[0], &y = t[1];
      if (logarithm) return {g - y.exp() * g.sum(dim, /*keepdim=*/true)};
      return {y * (g - (y * g).sum(dim, /*keepdim=*/true))};
    });
    return {found[0], found[1], {}, {}};
  }
};

Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, bool logarithm) {
  if (any_requires_grad(grad, output)) return SoftmaxBackwardFunction::apply(grad, output, dim, logarithm);
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::softmax_backward(grad, output, dim, logarithm);
}

struct SoftmaxGradients {
  static constexpr const char* name = "SoftmaxBackward";
  static constexpr size_t inputs = 1, saved = 1;
  int64_t dim;
  bool logarithm;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(dim), visit(logarithm);
  }

  std::array<Tensor, 1> operator()(const Tensor& grad, std::array<Tensor, 1>& tensors, const Needs&) const {
    return {ops::softmax_backward(grad, tensors[0], dim, logarithm)};
  }
};

Tensor in_dtype(const Tensor& input, OptionalType dtype) { return dtype ? input.to(*dtype) : input; }

template <bool logarithm>
Tensor softmax_below(const Tensor& input, int64_t dim, OptionalType dtype) {
  return ops::softmax_forward(in_dtype(input, dtype), dim, logarithm);
}

template <bool logarithm>
Tensor softmax(const Tensor& input, int64_t dim, OptionalType dtype) {
  const Tensor converted = in_dtype(input, dtype);
  Tensor output = below_autograd([&] { return ops::softmax_forward(converted, dim, logarithm); });
  if (!any_requires_grad(converted)) return output;
  return recorded(output, SoftmaxGradients{dim, logarithm}, {converted}, {output});
}

// Stock computes in float32 under autocast for CUDA, unless a dtype is given; for the CPU it has no rule.
template <bool logarithm>
Tensor softmax_autocast(const Tensor& input, int64_t dim, OptionalType dtype) {
  c10::impl::ExcludeDispatchKeyGuard off(at::autocast::get_autocast_dispatch_key_from_device_type(c10::kCUDA));
  const bool widens = !dtype && at::autocast::is_eligible(input, c10::kCUDA);
  return (logarithm ? &ops::log_softmax : &ops::softmax)(input, dim, widens ? OptionalType(at::kFloat) : dtype);
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("softmax", &pytorch_ext::softmax<false>);
  m.impl("log_softmax", &pytorch_ext::softmax<true>);
  m.impl("softmax_backward", &pytorch_ext::softmax_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  m.impl("softmax", &pytorch_ext::softmax_below<false>);
  m.impl("log_softmax", &pytorch_ext::softmax_below<true>);
}
TORCH_LIBRARY_IMPL(pytorch_ext, AutocastCUDA, m) {
  m.impl("softmax", &pytorch_ext::softmax_autocast<false>);
  m.impl("log_softmax", &pytorch_ext::softmax_autocast<true>);
}
