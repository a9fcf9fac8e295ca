// exp, log, log1p, tanh, sigmoid and erf as one fixed sequence of IEEE operations each, for a scalar or a Vector of
// float. A double takes libm's function: float64 is outside the bit contract.
#pragma once

#include "primitive.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// exp on [-ln2/2, ln2/2]: minimax polynomial of degree 6.
template <class V>
INLINE_HD V exp_polynomial(V r) {
  V p = constant<V>(0x1.6ac36cp-10f);
  p = fma(p, r, constant<V>(0x1.123da6p-7f));
  p = fma(p, r, constant<V>(0x1.555858p-5f));
  p = fma(p, r, constant<V>(0x1.55548cp-3f));
  p = fma(p, r, constant<V>(0x1.fffffcp-2f));
  p = fma(p, r, constant<V>(1.0f));
  return fma(p, r, constant<V>(1.0f));
}

// x - n ln2, with ln2 in two parts.
template <class V>
INLINE_HD V minus_multiple_of_ln2(V x, V n) {
  V r = fma(n, constant<V>(-0x1.62e430p-1f), x);
  return fma(n, constant<V>(0x1.05c610p-29f), r);
}

// e^x over the whole range: gradual underflow, infinities and NaN as IEEE has them.
template <class V>
INLINE_HD V exp(V x) {
  x = min(constant<V>(89.0f), max(constant<V>(-104.0f), x));  // in this order NaN stays
  V shifted = fma(x, constant<V>(0x1.715476p0f), constant<V>(0x1.8p23f));  // 1.5 * 2^23 rounds to an integer
  V n = sub(shifted, constant<V>(0x1.8p23f));
  V p = exp_polynomial(minus_multiple_of_ln2(x, n));
  // 2^n in two halves: one factor alone would overflow, or round a subnormal twice.
  auto k = sub(bits(shifted), int_constant<V>(0x4b400000));
  auto half = shift_right(k, 1);
  V first = from_bits(shift_left(add(half, int_constant<V>(127)), 23));
  V second = from_bits(shift_left(add(sub(k, half), int_constant<V>(127)), 23));
  return mul(mul(p, first), second);
}

// e^x for softmax, x <= 0: below -87 the result is +0 by definition, so that one multiplication scales it.
template <class V>
INLINE_HD V exp_nonpositive(V x) {
  V shifted = fma(x, constant<V>(0x1.715476p0f), constant<V>(0x1.8000fep23f));  // 1.5 * 2^23 + 127: a biased exponent
  V n = sub(shifted, constant<V>(0x1.8000fep23f));
  V scale = from_bits(shift_left(bits(shifted), 23));
  V e = mul(exp_polynomial(minus_multiple_of_ln2(x, n)), scale);  // a multiplication keeps NaN; an integer sum would not
  return select(less(x, constant<V>(-87.0f)), constant<V>(0.0f), e);
}

// Natural logarithm; 0 gives -inf, below 0 NaN.
template <class V>
INLINE_HD V log(V x) {
  auto subnormal = less(x, constant<V>(0x1p-126f));
  V scaled = select(subnormal, mul(x, constant<V>(0x1p23f)), x);
  auto b = bits(scaled);
  auto exponent = shift_right(sub(b, int_constant<V>(0x3f3504f3)), 23);  // mantissa in [sqrt(1/2), sqrt(2))
  V f = sub(from_bits(sub(b, shift_left(exponent, 23))), constant<V>(1.0f));
  V e = sub(to_float(exponent), select(subnormal, constant<V>(23.0f), constant<V>(0.0f)));
  V p = constant<V>(-0x1.38c916p-4f);
  p = fma(p, f, constant<V>(0x1.05742ap-3f));
  p = fma(p, f, constant<V>(-0x1.0d817ap-3f));
  p = fma(p, f, constant<V>(0x1.22d672p-3f));
  p = fma(p, f, constant<V>(-0x1.547296p-3f));
  p = fma(p, f, constant<V>(0x1.99a032p-3f));
  p = fma(p, f, constant<V>(-0x1.000226p-2f));
  p = fma(p, f, constant<V>(0x1.555554p-2f));
  V f2 = mul(f, f);
  V tail = fma(mul(p, f), f2, mul(f2, constant<V>(-0.5f)));  // f^3 p - f^2 / 2
  tail = fma(e, constant<V>(-0x1.05c610p-29f), tail);
  V y = fma(e, constant<V>(0x1.62e430p-1f), add(f, tail));
  V infinity = constant<V>(std::numeric_limits<float>::infinity());
  y = select(less(x, infinity), y, x);  // +inf and NaN pass through
  V zero = constant<V>(0.0f);
  y = select(equal(x, zero), neg(infinity), y);
  return select(less(x, zero), constant<V>(std::numeric_limits<float>::quiet_NaN()), y);
}

template <class V>
INLINE_HD V sigmoid(V x) {
  V e = exp(sub(constant<V>(0.0f), x));
  return div(constant<V>(1.0f), add(constant<V>(1.0f), e));
}

template <class V>
INLINE_HD V tanh(V x) {
  V a = abs(x), square = mul(x, x);
  V p = constant<V>(-0x1.99296cp-8f);
  p = fma(p, square, constant<V>(0x1.58e330p-6f));
  p = fma(p, square, constant<V>(-0x1.b91e62p-5f));
  p = fma(p, square, constant<V>(0x1.110ceep-3f));
  p = fma(p, square, constant<V>(-0x1.55554ap-2f));
  V small = fma(mul(square, p), x, x);
  V e = exp(min(constant<V>(20.0f), add(a, a)));  // in this order NaN stays
  V large = sub(constant<V>(1.0f), div(constant<V>(2.0f), add(e, constant<V>(1.0f))));
  auto sign = bit_and(bits(x), int_constant<V>(INT32_MIN));
  large = from_bits(bit_or(bits(large), sign));
  return select(less(a, constant<V>(0.55f)), small, large);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
