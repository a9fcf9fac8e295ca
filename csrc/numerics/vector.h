// SIMD lanes for the host: Vector<T> carries the operations of primitive.h, lane by lane.
//
// GCC's vector extension writes the arithmetic once for SSE2, AVX2, AVX-512 and NEON; only fma, square root, extrema
// and partial loads and stores need an instruction by name.
#pragma once

#include "low_precision.h"
#include "primitive.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pytorch_ext::PYTORCH_EXT_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct NativeVector;
template <>
struct NativeVector<float> {
  typedef float Type __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct NativeVector<double> {
  typedef double Type __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct NativeVector<int32_t> {
  typedef int32_t Type __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T>
struct Vector {
  using Native = typename NativeVector<T>::Type;
  static constexpr int size = VECTOR_BYTES / static_cast<int>(sizeof(T));
  Native v;
  Vector() = default;
  INLINE_HD Vector(Native native) : v(native) {}
  INLINE_HD explicit Vector(T x) : v(x - Native{}) {}  // a broadcast: x - (+0) is x, whatever its sign
};

using FloatV = Vector<float>;
using DoubleV = Vector<double>;
using IntV = Vector<int32_t>;

template <class T>
struct Lanes<Vector<T>> {
  using Element = T;
  using Int = IntV;
  static constexpr int count = Vector<T>::size;
};

template <class T>
struct Mask {
  typedef decltype(typename Vector<T>::Native{} < typename Vector<T>::Native{}) Native;
  Native v;
};

template <class T>
INLINE_HD Vector<T> add(Vector<T> a, Vector<T> b) {
  return a.v + b.v;
}
template <class T>
INLINE_HD Vector<T> sub(Vector<T> a, Vector<T> b) {
  return a.v - b.v;
}
template <class T>
INLINE_HD Vector<T> mul(Vector<T> a, Vector<T> b) {
  return a.v * b.v;
}
template <class T>
INLINE_HD Vector<T> div(Vector<T> a, Vector<T> b) {
  return a.v / b.v;
}
template <class T>
INLINE_HD Vector<T> neg(Vector<T> a) {
  return -a.v;
}
INLINE_HD IntV bit_and(IntV a, IntV b) { return a.v & b.v; }
INLINE_HD IntV bit_or(IntV a, IntV b) { return a.v | b.v; }
INLINE_HD IntV shift_left(IntV a, int n) { return a.v << n; }
INLINE_HD IntV shift_right(IntV a, int n) { return a.v >> n; }
INLINE_HD IntV bits(FloatV a) { return reinterpret_cast<IntV::Native>(a.v); }
INLINE_HD FloatV from_bits(IntV a) { return reinterpret_cast<FloatV::Native>(a.v); }
INLINE_HD FloatV to_float(IntV a) { return __builtin_convertvector(a.v, FloatV::Native); }
INLINE_HD FloatV abs(FloatV a) { return from_bits(bit_and(bits(a), IntV(0x7fffffff))); }
INLINE_HD DoubleV abs(DoubleV a) { return a.v < 0 ? -a.v : a.v; }

template <class T>
INLINE_HD Mask<T> less(Vector<T> a, Vector<T> b) {
  return {a.v < b.v};
}
template <class T>
INLINE_HD Mask<T> less_equal(Vector<T> a, Vector<T> b) {
  return {a.v <= b.v};
}
template <class T>
INLINE_HD Mask<T> equal(Vector<T> a, Vector<T> b) {
  return {a.v == b.v};
}
template <class T>
INLINE_HD Vector<T> select(Mask<T> condition, Vector<T> yes, Vector<T> no) {
  return condition.v ? yes.v : no.v;
}
INLINE_HD IntV select(Mask<float> condition, IntV yes, IntV no) { return condition.v ? yes.v : no.v; }

// Exactly max and min of primitive.h, NaN and the sign of zero included.
#if defined(__AVX512F__)
INLINE_HD FloatV max(FloatV a, FloatV b) { return FloatV::Native(_mm512_max_ps(a.v, b.v)); }
INLINE_HD FloatV min(FloatV a, FloatV b) { return FloatV::Native(_mm512_min_ps(a.v, b.v)); }
#elif defined(__AVX2__)
INLINE_HD FloatV max(FloatV a, FloatV b) { return FloatV::Native(_mm256_max_ps(a.v, b.v)); }
INLINE_HD FloatV min(FloatV a, FloatV b) { return FloatV::Native(_mm256_min_ps(a.v, b.v)); }
#elif defined(__x86_64__)
INLINE_HD FloatV max(FloatV a, FloatV b) { return FloatV::Native(_mm_max_ps(a.v, b.v)); }
INLINE_HD FloatV min(FloatV a, FloatV b) { return FloatV::Native(_mm_min_ps(a.v, b.v)); }
#endif

#if defined(__AVX512F__)
INLINE_HD FloatV fma(FloatV a, FloatV b, FloatV c) { return FloatV::Native(_mm512_fmadd_ps(a.v, b.v, c.v)); }
INLINE_HD DoubleV fma(DoubleV a, DoubleV b, DoubleV c) { return DoubleV::Native(_mm512_fmadd_pd(a.v, b.v, c.v)); }
INLINE_HD FloatV sqrt(FloatV a) { return FloatV::Native(_mm512_sqrt_ps(a.v)); }
INLINE_HD DoubleV sqrt(DoubleV a) { return DoubleV::Native(_mm512_sqrt_pd(a.v)); }
#elif defined(__AVX2__)
INLINE_HD FloatV fma(FloatV a, FloatV b, FloatV c) { return FloatV::Native(_mm256_fmadd_ps(a.v, b.v, c.v)); }
INLINE_HD DoubleV fma(DoubleV a, DoubleV b, DoubleV c) { return DoubleV::Native(_mm256_fmadd_pd(a.v, b.v, c.v)); }
INLINE_HD FloatV sqrt(FloatV a) { return FloatV::Native(_mm256_sqrt_ps(a.v)); }
INLINE_HD DoubleV sqrt(DoubleV a) { return DoubleV::Native(_mm256_sqrt_pd(a.v)); }
#elif defined(__aarch64__)
INLINE_HD FloatV fma(FloatV a, FloatV b, FloatV c) { return FloatV::Native(vfmaq_f32(c.v, a.v, b.v)); }
INLINE_HD DoubleV fma(DoubleV a, DoubleV b, DoubleV c) { return DoubleV::Native(vfmaq_f64(c.v, a.v, b.v)); }
INLINE_HD FloatV sqrt(FloatV a) { return FloatV::Native(vsqrtq_f32(a.v)); }
INLINE_HD DoubleV sqrt(DoubleV a) { return DoubleV::Native(vsqrtq_f64(a.v)); }
#else
// Without fma: primitive.h's rounding to odd, two lanes of double at a time.
INLINE_HD DoubleV fma_rounded_to_odd(DoubleV a, DoubleV b, DoubleV c) {
  typedef int64_t Bits __attribute__((vector_size(16)));
  DoubleV::Native product = a.v * b.v, sum = product + c.v, part = sum - product;
  DoubleV::Native error = (product - (sum - part)) + (c.v - part);
  Bits b64 = reinterpret_cast<Bits>(sum);
  Bits even = (b64 & 1) - 1, inexact = (error > 0) | (error < 0);
  Bits inward = (error > 0) ^ (sum > 0);  // all ones, which is -1, where the exact sum is nearer to zero
  return reinterpret_cast<DoubleV::Native>(b64 + (inexact & even & (inward | 1)));
}
INLINE_HD FloatV fma(FloatV a, FloatV b, FloatV c) {
  auto low = [](FloatV x) { return DoubleV::Native(_mm_cvtps_pd(x.v)); };
  auto high = [](FloatV x) { return DoubleV::Native(_mm_cvtps_pd(_mm_movehl_ps(x.v, x.v))); };
  __m128 first = _mm_cvtpd_ps(fma_rounded_to_odd(low(a), low(b), low(c)).v);
  __m128 second = _mm_cvtpd_ps(fma_rounded_to_odd(high(a), high(b), high(c)).v);
  return FloatV::Native(_mm_movelh_ps(first, second));
}
INLINE_HD DoubleV fma(DoubleV a, DoubleV b, DoubleV c) {
  return DoubleV::Native{fma(a.v[0], b.v[0], c.v[0]), fma(a.v[1], b.v[1], c.v[1])};
}
INLINE_HD FloatV sqrt(FloatV a) { return FloatV::Native(_mm_sqrt_ps(a.v)); }
INLINE_HD DoubleV sqrt(DoubleV a) { return DoubleV::Native(_mm_sqrt_pd(a.v)); }
#endif

// ---- memory -------------------------------------------------------------------------------------------------------
// load<S>(p): the lanes at p, widened to S's compute type. load<S>(p, n, fill): the first n of them, `fill` beyond (n
// may be <= 0 or >= the lane count). store mirrors both. Nothing beyond n is read or written.

template <class S>
using ComputeV = Vector<compute_t<S>>;

template <class T>
INLINE_HD Vector<T> load_lanes(const T* p) {
  Vector<T> r;
  std::memcpy(&r.v, p, sizeof r.v);
  return r;
}

// 16 bits for each lane, and the lanes that low_precision.h makes of them, and back.
typedef uint16_t NarrowLanes __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t WideLanes __attribute__((vector_size(VECTOR_BYTES)));

template <class S>
INLINE_HD FloatV widen_lanes(NarrowLanes x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return reinterpret_cast<FloatV::Native>(__builtin_convertvector(x, WideLanes) << 16);
  } else {
#if defined(__AVX512F__)
    return FloatV::Native(_mm512_cvtph_ps(reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
    return FloatV::Native(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
#else
    FloatV r;
    for (int i = 0; i < FloatV::size; i++) r.v[i] = widen(S{x[i]});
    return r;
#endif
  }
}
template <class S>
INLINE_HD NarrowLanes narrow_lanes(FloatV x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const WideLanes b = reinterpret_cast<WideLanes>(x.v);
    const WideLanes quiet = b >> 16 | 0x40, rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    return __builtin_convertvector(x.v != x.v ? quiet : rounded, NarrowLanes);
  } else {
#if defined(__AVX512F__)
    return reinterpret_cast<NarrowLanes>(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    return reinterpret_cast<NarrowLanes>(_mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
#else
    NarrowLanes r;
    for (int i = 0; i < FloatV::size; i++) r[i] = narrow<S>(x.v[i]).bits;
    return r;
#endif
  }
}

template <class S>
INLINE_HD ComputeV<S> load(const S* p) {
  if constexpr (sizeof(S) == sizeof(compute_t<S>)) {
    return load_lanes<compute_t<S>>(p);
  } else {
    NarrowLanes x;
    std::memcpy(&x, p, sizeof x);
    return widen_lanes<S>(x);
  }
}
// Four numbers, again and again in all lanes.
#if defined(__AVX512F__)
INLINE_HD FloatV load_fours(const float* p) { return FloatV::Native(_mm512_broadcast_f32x4(_mm_loadu_ps(p))); }
INLINE_HD DoubleV load_fours(const double* p) { return DoubleV::Native(_mm512_broadcast_f64x4(_mm256_loadu_pd(p))); }
#elif defined(__AVX2__)
INLINE_HD FloatV load_fours(const float* p) {
  const __m128 x = _mm_loadu_ps(p);
  return FloatV::Native(_mm256_set_m128(x, x));
}
INLINE_HD DoubleV load_fours(const double* p) { return load_lanes(p); }
#else
INLINE_HD FloatV load_fours(const float* p) { return load_lanes(p); }
#endif
template <class S>
INLINE_HD void store(S* p, ComputeV<S> x) {
  if constexpr (sizeof(S) == sizeof(compute_t<S>)) {
    std::memcpy(p, &x.v, sizeof x.v);
  } else {
    const NarrowLanes lanes = narrow_lanes<S>(x);
    std::memcpy(p, &lanes, sizeof lanes);
  }
}

#if defined(__AVX512F__)
INLINE_HD __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1u);
}
INLINE_HD FloatV load_first(const float* p, int64_t n, float fill) {
  return FloatV::Native(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p));
}
INLINE_HD void store_first(float* p, FloatV x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
#elif defined(__AVX2__)
INLINE_HD __m256i first_lanes(int64_t n) {
  int count = n >= 8 ? 8 : n <= 0 ? 0 : static_cast<int>(n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE_HD FloatV load_first(const float* p, int64_t n, float fill) {
  __m256i lanes = first_lanes(n);
  return FloatV::Native(
      _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes)));
}
INLINE_HD void store_first(float* p, FloatV x, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x.v); }
#endif
template <class S>
INLINE_HD ComputeV<S> load_first(const S* p, int64_t n, compute_t<S> fill) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    const FloatV x = widen_lanes<S>(reinterpret_cast<NarrowLanes>(_mm256_maskz_loadu_epi16(first_lanes(n), p)));
    return FloatV::Native(_mm512_mask_blend_ps(first_lanes(n), _mm512_set1_ps(fill), x.v));
  }
#endif
  ComputeV<S> r(fill);
  for (int i = 0; i < ComputeV<S>::size && i < n; i++) r.v[i] = widen(p[i]);
  return r;
}
template <class S>
INLINE_HD void store_first(S* p, ComputeV<S> x, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2)
    return _mm256_mask_storeu_epi16(p, first_lanes(n), reinterpret_cast<__m256i>(narrow_lanes<S>(x)));
#endif
  for (int i = 0; i < ComputeV<S>::size && i < n; i++) p[i] = narrow<S>(x.v[i]);
}

template <class S>
INLINE_HD ComputeV<S> load(const S* p, int64_t n, compute_t<S> fill) {
  if (__builtin_expect(n >= ComputeV<S>::size, 1)) return load(p);
  return load_first(p, n, fill);
}
template <class S>
INLINE_HD void store(S* p, ComputeV<S> x, int64_t n) {
  if (__builtin_expect(n >= ComputeV<S>::size, 1)) return store(p, x);
  store_first(p, x, n);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
