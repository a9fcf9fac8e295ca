// Element-wise losses: value and both derivatives side by side. Each operation as written, in this order.
//
//   value(x, y, p)         the loss of input x and target y; p is the weight of the positive class where there is one
//   input_slope(x, y, p)   d value / dx
//   target_slope(x, y, p)  d value / dy
//   zero_at_zero           value(0, 0, p) is +0
#pragma once

#include "functions.h"
#include "kinds.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

struct MseLoss {
  static constexpr bool of_probabilities = false, zero_at_zero = true;
  template <class V>
  static INLINE_HD V value(V x, V y, V) {
    V d = sub(x, y);
    return mul(d, d);
  }
  template <class V>
  static INLINE_HD V input_slope(V x, V y, V) {
    return mul(constant<V>(2), sub(x, y));
  }
  template <class V>
  static INLINE_HD V target_slope(V x, V y, V p) {
    return neg(input_slope(x, y, p));
  }
};

struct BinaryCrossEntropy {  // (y - 1) log(1 - x) - y log(x), the logarithms not below -100
  static constexpr bool of_probabilities = true, zero_at_zero = false;
  template <class V>
  static INLINE_HD V value(V x, V y, V) {
    V lowest = constant<V>(-100);
    V log_x = max(log(x), lowest), log_rest = max(log1p(neg(x)), lowest);
    return sub(mul(sub(y, constant<V>(1)), log_rest), mul(y, log_x));
  }
  template <class V>
  static INLINE_HD V input_slope(V x, V y, V) {  // (x - y) / (x (1 - x)), the denominator not below 1e-12
    V denominator = mul(sub(constant<V>(1), x), x);
    return div(sub(x, y), max(denominator, constant<V>(1e-12)));
  }
  template <class V>
  static INLINE_HD V target_slope(V x, V, V) {  // not cut at 100: infinite at 0 and 1, as in torch
    return sub(log1p(neg(x)), log(x));
  }
};

struct BinaryCrossEntropyWithLogits {  // max(x, 0) - x y + log(1 + e^-|x|)
  static constexpr bool of_probabilities = false, zero_at_zero = false;
  template <class V>
  static INLINE_HD V value(V x, V y, V) {
    return add(sub(max(x, constant<V>(0)), mul(x, y)), log1p(exp(neg(abs(x)))));
  }
  template <class V>
  static INLINE_HD V input_slope(V x, V y, V) {
    return sub(sigmoid(x), y);
  }
  template <class V>
  static INLINE_HD V target_slope(V x, V, V) {
    return neg(x);
  }
};

struct BinaryCrossEntropyWithPosWeight {  // (1 - y) x + (1 + (p - 1) y) softplus(-x)
  static constexpr bool of_probabilities = false, zero_at_zero = false;
  template <class V>
  static INLINE_HD V log_weight(V y, V p) {
    return fma(sub(p, constant<V>(1)), y, constant<V>(1));
  }
  template <class V>
  static INLINE_HD V softplus_of_negative(V x) {  // log(1 + e^-x)
    return add(max(neg(x), constant<V>(0)), log1p(exp(neg(abs(x)))));
  }
  template <class V>
  static INLINE_HD V value(V x, V y, V p) {
    return fma(sub(constant<V>(1), y), x, mul(log_weight(y, p), softplus_of_negative(x)));
  }
  template <class V>
  static INLINE_HD V input_slope(V x, V y, V p) {  // (1 + (p - 1) y) sigmoid(x) - p y: without a weight where p = 1
    return fma(log_weight(y, p), sigmoid(x), neg(mul(p, y)));
  }
  template <class V>
  static INLINE_HD V target_slope(V x, V, V p) {
    return fma(sub(p, constant<V>(1)), softplus_of_negative(x), neg(x));
  }
};

// Calls f with the loss's struct: one switch outside the loop, none inside.
template <class F>
INLINE_HD void with_elementwise_loss(ElementwiseLoss loss, bool has_pos_weight, F&& f) {
  switch (loss) {
    case ElementwiseLoss::mse_loss: return f(MseLoss{});
    case ElementwiseLoss::binary_cross_entropy: return f(BinaryCrossEntropy{});
    case ElementwiseLoss::binary_cross_entropy_with_logits:
      return has_pos_weight ? f(BinaryCrossEntropyWithPosWeight{}) : f(BinaryCrossEntropyWithLogits{});
  }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
