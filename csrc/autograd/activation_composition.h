// The derivative of an activation in stock operators: what the derivative of a fused derivative is taken of.
#pragma once

#include <ATen/ATen.h>

#include "../numerics/kinds.h"

namespace pytorch_ext {

// g * f'(z); `saved` is z or y = f(z) as saves_input() says.
inline at::Tensor composed_activation_gradient(const at::Tensor& g, const at::Tensor& saved, Activation kind) {
  switch (kind) {
    case Activation::none: return g;
    case Activation::relu: return at::threshold_backward(g, saved, 0);
    case Activation::sigmoid: return at::sigmoid_backward(g, saved);
    case Activation::tanh: return at::tanh_backward(g, saved);
    case Activation::gelu: return at::gelu_backward(g, saved, "none");
    case Activation::gelu_tanh: return at::gelu_backward(g, saved, "tanh");
    case Activation::silu: {  // aten::silu_backward has no derivative of its own
      at::Tensor s = at::sigmoid(saved);
      return g * (s * (1 + saved * (1 - s)));
    }
  }
  return {};
}

}  // namespace pytorch_ext
