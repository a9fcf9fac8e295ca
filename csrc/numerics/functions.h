// exp, log, log1p, tanh, sigmoid and erf as one fixed sequence of IEEE operations each, for a float or a Vector of
// float. Polynomials are minimax fits whose coefficients were rounded to float one after the other, lowest first.
//
// Accuracy is stated over every float32 input, in units in the last place of the exact result.
#pragma once

#include "primitive.h"
#if !defined(__CUDACC__)
#include "vector.h"
#endif

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- float64 is outside the bit contract: libm's function, lane by lane ---------------------------------------------

#if defined(__CUDACC__)
#define PYTORCH_EXT_LIBM(name, libm) \
  INLINE_HD double name(double x) { return ::libm(x); }
#else
#define PYTORCH_EXT_LIBM(name, libm)                               \
  INLINE_HD double name(double x) { return ::libm(x); }            \
  INLINE_HD DoubleV name(DoubleV x) {                              \
    for (int i = 0; i < DoubleV::size; i++) x.v[i] = name(x.v[i]); \
    return x;                                                      \
  }
#endif
PYTORCH_EXT_LIBM(exp, exp)
PYTORCH_EXT_LIBM(exp_nonpositive, exp)
PYTORCH_EXT_LIBM(log, log)
PYTORCH_EXT_LIBM(log1p, log1p)
PYTORCH_EXT_LIBM(tanh, tanh)
PYTORCH_EXT_LIBM(erf, erf)
#undef PYTORCH_EXT_LIBM

// ---- exp ------------------------------------------------------------------------------------------------------------

// exp on [-ln2/2, ln2/2].
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

// The integer n that x was rounded to by adding 1.5 * 2^23: `shifted` is the sum.
template <class V>
INLINE_HD V integer_of(V shifted) {
  return sub(shifted, constant<V>(0x1.8p23f));
}

// p 2^n, rounded once, for p in (1/2, 2) and -150 <= n <= 129.
template <class V>
INLINE_HD V times_power_of_two(V p, V shifted) {
  // 2^n in two halves: one factor alone would overflow, or round a subnormal twice.
  auto k = sub(bits(shifted), int_constant<V>(0x4b400000));
  auto half = shift_right(k, 1);
  V first = from_bits(shift_left(add(half, int_constant<V>(127)), 23));
  V second = from_bits(shift_left(add(sub(k, half), int_constant<V>(127)), 23));
  return mul(mul(p, first), second);
}
#if !defined(__CUDACC__) && defined(__AVX512F__)
INLINE_HD FloatV times_power_of_two(FloatV p, FloatV shifted) {
  return FloatV::Native(_mm512_scalef_ps(p.v, integer_of(shifted).v));
}
#endif

// e^x over the whole range: gradual underflow, infinities and NaN as IEEE has them. At most 0.90 ulp.
template <class V>
INLINE_HD V exp(V x) {
  x = min(constant<V>(89.0f), max(constant<V>(-104.0f), x));  // in this order NaN stays
  V shifted = fma(x, constant<V>(0x1.715476p0f), constant<V>(0x1.8p23f));
  return times_power_of_two(exp_polynomial(minus_multiple_of_ln2(x, integer_of(shifted))), shifted);
}

// e^x for softmax, x <= 0: below -87 the result is +0 by definition, so that one multiplication scales it. At most 0.90
// ulp down to there.
template <class V>
INLINE_HD V exp_nonpositive(V x) {
  V shifted = fma(x, constant<V>(0x1.715476p0f), constant<V>(0x1.8000fep23f));  // 1.5 * 2^23 + 127: a biased exponent
  V n = sub(shifted, constant<V>(0x1.8000fep23f));
  V scale = from_bits(shift_left(bits(shifted), 23));
  // Scaled by multiplication: an integer sum on the exponent would turn a NaN into a number.
  V e = mul(exp_polynomial(minus_multiple_of_ln2(x, n)), scale);
  return select(less(x, constant<V>(-87.0f)), constant<V>(0.0f), e);
}

// ---- logarithms -----------------------------------------------------------------------------------------------------

// The exponent of the power of two that takes b, a positive float's bits, into [sqrt(1/2), sqrt(2)).
template <class Int>
INLINE_HD Int centred_exponent(Int b) {
  return shift_right(sub(b, Int(0x3f3504f3)), 23);
}

// e ln2 + log(1 + f) for an integer e and 1 + f in [sqrt(1/2), sqrt(2)).
template <class V>
INLINE_HD V log_of_parts(V e, V f) {
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
  return fma(e, constant<V>(0x1.62e430p-1f), add(f, tail));
}

// y where x is positive and finite, else what log has: +inf and NaN pass through, 0 gives -inf, below 0 NaN.
template <class V>
INLINE_HD V with_special_logarithms(V x, V y) {
  V infinity = constant<V>(POSITIVE_INFINITY), zero = constant<V>(0.0f);
  y = select(less(x, infinity), y, x);
  y = select(equal(x, zero), neg(infinity), y);
  return select(less(x, zero), constant<V>(QUIET_NAN), y);
}

// At most 0.98 ulp.
template <class V>
INLINE_HD V log(V x) {
  auto subnormal = less(x, constant<V>(0x1p-126f));
  auto b = bits(select(subnormal, mul(x, constant<V>(0x1p23f)), x));
  auto exponent = centred_exponent(b);
  V f = sub(from_bits(sub(b, shift_left(exponent, 23))), constant<V>(1.0f));
  V e = sub(to_float(exponent), select(subnormal, constant<V>(23.0f), constant<V>(0.0f)));
  return with_special_logarithms(x, log_of_parts(e, f));
}

// log(1 + x). The rounded sum only chooses e: f is taken from x itself. At most 1.47 ulp.
template <class V>
INLINE_HD V log1p(V x) {
  V sum = add(constant<V>(1.0f), x);
  auto exponent = centred_exponent(bits(sum));
  V scale = from_bits(sub(int_constant<V>(0x40800000), shift_left(exponent, 23)));  // 4 / 2^e, normal up to e = 128
  V offset = fma(constant<V>(0.25f), scale, constant<V>(-1.0f));
  V f = fma(mul(constant<V>(0.25f), x), scale, offset);  // (1 + x) / 2^e - 1
  V y = with_special_logarithms(sum, log_of_parts(to_float(exponent), f));
  return select(less(abs(x), constant<V>(0x1p-26f)), x, y);
}

// ---- sigmoid, tanh, erf ---------------------------------------------------------------------------------------------

// The exponential of -|x| cannot overflow, so the result underflows gradually. At most 2.41 ulp.
template <class V>
INLINE_HD V sigmoid(V x) {
  V e = exp(neg(abs(x))), one = constant<V>(1.0f);
  return div(select(less(x, constant<V>(0.0f)), e, one), add(one, e));
}

// magnitude >= +0 with the sign of x.
template <class V>
INLINE_HD V with_sign_of(V x, V magnitude) {
  return from_bits(bit_or(bits(magnitude), bit_and(bits(x), int_constant<V>(INT32_MIN))));
}

// At most 1.59 ulp.
template <class V>
INLINE_HD V tanh(V x) {
  V a = abs(x), square = mul(x, x);
  V p = constant<V>(-0x1.99296cp-8f);
  p = fma(p, square, constant<V>(0x1.58e330p-6f));
  p = fma(p, square, constant<V>(-0x1.b91e62p-5f));
  p = fma(p, square, constant<V>(0x1.110ceep-3f));
  p = fma(p, square, constant<V>(-0x1.55554ap-2f));
  V small = fma(mul(square, p), a, a);
  V e = exp(min(constant<V>(20.0f), add(a, a)));  // in this order NaN stays
  V large = sub(constant<V>(1.0f), div(constant<V>(2.0f), add(e, constant<V>(1.0f))));
  return with_sign_of(x, select(less(a, constant<V>(0.55f)), small, large));
}

// At most 1.10 ulp.
template <class V>
INLINE_HD V erf(V x) {
  V a = min(constant<V>(4.0f), abs(x)), square = mul(x, x);  // erf(4) rounds to 1; in this order NaN stays
  V p = constant<V>(-0x1.3ba9cep-11f);
  p = fma(p, square, constant<V>(0x1.479c9ep-8f));
  p = fma(p, square, constant<V>(-0x1.b69b96p-6f));
  p = fma(p, square, constant<V>(0x1.ce1b86p-4f));
  p = fma(p, square, constant<V>(-0x1.8126ecp-2f));
  p = fma(p, square, constant<V>(0x1.06eba6p-3f));
  V small = fma(p, a, a);
  V q = constant<V>(0x1.9db7b4p-13f);  // log(1 - erf(a)) for a in [0.9, 4]
  q = fma(q, a, constant<V>(-0x1.90a096p-9f));
  q = fma(q, a, constant<V>(0x1.6d0ca4p-6f));
  q = fma(q, a, constant<V>(-0x1.aa2b46p-4f));
  q = fma(q, a, constant<V>(-0x1.462b88p-1f));
  q = fma(q, a, constant<V>(-0x1.20b48ap+0f));
  q = fma(q, a, constant<V>(-0x1.71989ep-13f));
  V large = sub(constant<V>(1.0f), exp_nonpositive(q));
  return with_sign_of(x, select(less(a, constant<V>(0.9f)), small, large));
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
