// Plain types that cross from the launchers to the kernels of every instruction set: no arithmetic here.
#pragma once

#include <cstdint>

namespace pytorch_ext {

// Storage types of 16 bits; low_precision.h computes with them.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type a storage type is computed in.
template <class S>
struct Compute {
  using Type = S;
};
template <>
struct Compute<BFloat16> {
  using Type = float;
};
template <>
struct Compute<Half> {
  using Type = float;
};
template <class S>
using compute_t = typename Compute<S>::Type;

enum class Activation : int { none, relu, sigmoid, tanh, gelu, gelu_tanh, silu };

// Whether the gradient needs z = the activation's input (gelu, silu) or its output y.
constexpr bool saves_input(Activation a) {
  return a == Activation::gelu || a == Activation::gelu_tanh || a == Activation::silu;
}

enum class ElementwiseLoss : int { mse_loss, binary_cross_entropy, binary_cross_entropy_with_logits };

enum class Function : int { exp, exp_nonpositive, log, log1p, tanh, sigmoid, erf };

// at::Reduction's numbers.
enum class Reduction : int { none, mean, sum };

}  // namespace pytorch_ext
