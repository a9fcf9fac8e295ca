// The only place where a scalar floating-point instruction is chosen.
//
// Each function is exactly one IEEE-754 operation, rounded to nearest even, with gradual underflow. Kernels call these
// and never write + - * / on floats themselves: nvcc may contract bare operators into fma, and g++ does so by default.
#pragma once

#include <cmath>
#include <limits>

#include "platform.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

#if defined(__CUDA_ARCH__)
// The _rn intrinsics are never contracted, whatever -fmad says.
INLINE_HD float add(float a, float b) { return __fadd_rn(a, b); }
INLINE_HD float sub(float a, float b) { return __fsub_rn(a, b); }
INLINE_HD float mul(float a, float b) { return __fmul_rn(a, b); }
INLINE_HD float div(float a, float b) { return __fdiv_rn(a, b); }
INLINE_HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
INLINE_HD float sqrt(float a) { return __fsqrt_rn(a); }
INLINE_HD double add(double a, double b) { return __dadd_rn(a, b); }
INLINE_HD double sub(double a, double b) { return __dsub_rn(a, b); }
INLINE_HD double mul(double a, double b) { return __dmul_rn(a, b); }
INLINE_HD double div(double a, double b) { return __ddiv_rn(a, b); }
INLINE_HD double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
INLINE_HD double sqrt(double a) { return __dsqrt_rn(a); }
#else
INLINE_HD float add(float a, float b) { return a + b; }
INLINE_HD float sub(float a, float b) { return a - b; }
INLINE_HD float mul(float a, float b) { return a * b; }
INLINE_HD float div(float a, float b) { return a / b; }
INLINE_HD float sqrt(float a) { return __builtin_sqrtf(a); }
INLINE_HD double add(double a, double b) { return a + b; }
INLINE_HD double sub(double a, double b) { return a - b; }
INLINE_HD double mul(double a, double b) { return a * b; }
INLINE_HD double div(double a, double b) { return a / b; }
INLINE_HD double sqrt(double a) { return __builtin_sqrt(a); }
INLINE_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if defined(__FMA__) || defined(__aarch64__)
INLINE_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// A processor without fma: the product of two floats is exact in double, and a double sum rounded to odd keeps enough
// to be rounded once more to float as if it had been exact (53 >= 24 + 2 bits). 15 times faster than libm's fmaf.
INLINE_HD float fma(float a, float b, float c) {
  double product = static_cast<double>(a) * b, addend = c;
  double sum = product + addend;
  double part = sum - product;
  double error = (product - (sum - part)) + (addend - part);
  int64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  if ((error > 0 || error < 0) && !(bits & 1)) bits += (error > 0) == (sum > 0) ? 1 : -1;
  std::memcpy(&sum, &bits, sizeof sum);
  return static_cast<float>(sum);
}
#endif
#endif

// As constants: device code may not call the functions that give them.
constexpr float POSITIVE_INFINITY = std::numeric_limits<float>::infinity();
constexpr float QUIET_NAN = std::numeric_limits<float>::quiet_NaN();

INLINE_HD int32_t bits(float a) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(a);
#else
  int32_t r;
  std::memcpy(&r, &a, sizeof r);
  return r;
#endif
}
INLINE_HD float from_bits(int32_t a) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(a);
#else
  float r;
  std::memcpy(&r, &a, sizeof r);
  return r;
#endif
}

// Integers: wrap-around arithmetic, arithmetic right shift. to_float is exact for |a| < 2^24, all that is asked of it.
INLINE_HD int32_t add(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
INLINE_HD int32_t sub(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
}
INLINE_HD int32_t bit_and(int32_t a, int32_t b) { return a & b; }
INLINE_HD int32_t bit_or(int32_t a, int32_t b) { return a | b; }
INLINE_HD int32_t shift_left(int32_t a, int n) { return static_cast<int32_t>(static_cast<uint32_t>(a) << n); }
INLINE_HD int32_t shift_right(int32_t a, int n) { return a >> n; }
INLINE_HD float to_float(int32_t a) { return static_cast<float>(a); }

// Comparisons are false where an argument is NaN.
INLINE_HD bool less(float a, float b) { return a < b; }
INLINE_HD bool less(double a, double b) { return a < b; }
INLINE_HD bool less_equal(float a, float b) { return a <= b; }
INLINE_HD bool less_equal(double a, double b) { return a <= b; }
INLINE_HD bool equal(float a, float b) { return a == b; }
INLINE_HD bool equal(double a, double b) { return a == b; }
template <class T>
INLINE_HD T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}
// Defined by comparison and selection, so that -0 and NaN behave alike everywhere: where either is NaN, b.
template <class V>
INLINE_HD V max(V a, V b) {
  return select(less(b, a), a, b);
}
template <class V>
INLINE_HD V min(V a, V b) {
  return select(less(a, b), a, b);
}

INLINE_HD float neg(float a) { return -a; }
INLINE_HD double neg(double a) { return -a; }
INLINE_HD float abs(float a) { return from_bits(bits(a) & 0x7fffffff); }
INLINE_HD double abs(double a) { return a < 0 ? -a : a; }

// Lane types: what a vector type V (vector.h) or a scalar is made of.
template <class V>
struct Lanes {
  using Element = V;
  using Int = int32_t;
  static constexpr int count = 1;
};
template <class V>
INLINE_HD V constant(typename Lanes<V>::Element x) {
  return V(x);
}
template <class V>
INLINE_HD typename Lanes<V>::Int int_constant(int32_t x) {
  return typename Lanes<V>::Int(x);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
