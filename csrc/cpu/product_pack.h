// Operands of the product brought into the order the micro-kernel reads: widened, and transposed where need be.
#pragma once

#include <utility>

#include "../numerics/vector.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- transposition of a square of lanes, in registers ---------------------------------------------------------------
// Every step exchanges one bit of the register's number with one bit of the lane's: by pairing halves of two lines as
// they are loaded, by exchanging blocks of 128 bits, and by interleaving inside the blocks. Each is one instruction,
// where a permutation over the whole register would be two with AVX2, and the first needs no shuffle unit.

template <class T>
struct Square {
  using V = Vector<T>;
  static constexpr int lanes = V::size;
  static constexpr int block = 16 / static_cast<int>(sizeof(T));
  static constexpr int blocks = lanes / block;
  V rows[lanes];

  INLINE_HD void transpose_blocks() {
    if constexpr (blocks == 4) exchange<block>();
    if constexpr (block == 4) exchange<2>();
    exchange<1>();
  }

  // Lines i and i + block make a pair: its low halves are loaded as one row, the high ones as the row lanes / 2
  // further.
  static constexpr int first_of_pair(int pair) { return pair / block * block * 2 + pair % block; }

 private:
  // Lane of the pair (a, b) that comes to lane l: 0 .. lanes - 1 are a's, the rest b's.
  static constexpr int interleaved(int l, int upper) {
    return l / block * block + upper * (block / 2) + l % block / 2 + l % 2 * lanes;
  }
  static constexpr int alternate_blocks(int l, int odd) {
    int from = l / block * 2;
    return (from % blocks + odd) * block + l % block + from / blocks * lanes;
  }
  template <int DISTANCE, int... L>
  static INLINE_HD void exchange_pair(V& a, V& b, std::integer_sequence<int, L...>) {
    constexpr bool inside = DISTANCE < block;
    auto first = __builtin_shufflevector(a.v, b.v, (inside ? interleaved(L, 0) : alternate_blocks(L, 0))...);
    auto second = __builtin_shufflevector(a.v, b.v, (inside ? interleaved(L, 1) : alternate_blocks(L, 1))...);
    a.v = first, b.v = second;
  }
  template <int DISTANCE>
  INLINE_HD void exchange() {
#pragma GCC unroll 8
    for (int pair = 0; pair < lanes / 2; pair++) {
      const int i = pair / DISTANCE * DISTANCE * 2 + pair % DISTANCE;
      exchange_pair<DISTANCE>(rows[i], rows[i + DISTANCE], std::make_integer_sequence<int, lanes>{});
    }
  }
};

// The halves of two lines, paired: (low of a, low of b) and (high of a, high of b).
template <class T, int... L>
INLINE_HD void pair_halves(Vector<T> a, Vector<T> b, Vector<T>& low, Vector<T>& high,
                           std::integer_sequence<int, L...>) {
  constexpr int lanes = Vector<T>::size, half = lanes / 2;
  low.v = __builtin_shufflevector(a.v, b.v, (L % half + L / half * lanes)...);
  high.v = __builtin_shufflevector(a.v, b.v, (L % half + L / half * lanes + half)...);
}
#if defined(__AVX512F__)  // by name: g++ would make a shuffle of them
INLINE_HD FloatV load_half_of_each(const float* a, const float* b) {
  return FloatV::Native(_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1));
}
INLINE_HD DoubleV load_half_of_each(const double* a, const double* b) {
  return DoubleV::Native(_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(a)), _mm256_loadu_pd(b), 1));
}
#elif defined(__AVX2__)
INLINE_HD FloatV load_half_of_each(const float* a, const float* b) {
  return FloatV::Native(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1));
}
INLINE_HD DoubleV load_half_of_each(const double* a, const double* b) {
  return DoubleV::Native(_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(a)), _mm_loadu_pd(b), 1));
}
#endif

// As many lines as there are lanes; the last of `count` stands in for those that do not exist.
template <class S>
struct Lines {
  using Element = S;
  static constexpr int lanes = ComputeV<S>::size;
  const S* line[lanes];

  INLINE_HD Lines(const S* first, int64_t stride, int64_t count) {
    for (int i = 0; i < lanes; i++) line[i] = first + (i < count ? i : count - 1) * stride;
  }
  struct Elements {  // those from k on
    const Lines& lines;
    int64_t k;
    INLINE_HD const S* of(int i) const { return lines.line[i] + k; }
  };
  INLINE_HD Elements from(int64_t k) const { return {*this, k}; }
};

// Row k of the square: elements k of all lines. `length` of them exist, the rest are +0.
template <class L>
INLINE_HD void load_square(const L& lines, int64_t k, int64_t length, Square<compute_t<typename L::Element>>& square) {
  using S = typename L::Element;
  using T = compute_t<S>;
  using Q = Square<T>;
  constexpr int lanes = Q::lanes;
  const auto elements = lines.from(k);
#pragma GCC unroll 8
  for (int pair = 0; pair < (Q::blocks == 1 ? 0 : lanes / 2); pair++) {
    const int i = Q::first_of_pair(pair);
    const S *a = elements.of(i), *b = elements.of(i + Q::block);
    Vector<T>&low = square.rows[pair], &high = square.rows[lanes / 2 + pair];
    if constexpr (std::is_same_v<S, T> && Q::blocks > 1)
      if (length >= lanes) {
        low = load_half_of_each(a, b), high = load_half_of_each(a + lanes / 2, b + lanes / 2);
        continue;
      }
    pair_halves(load(a, length, T(0)), load(b, length, T(0)), low, high, std::make_integer_sequence<int, lanes>{});
  }
  if constexpr (Q::blocks == 1)
#pragma GCC unroll 4
    for (int i = 0; i < lanes; i++) square.rows[i] = load(elements.of(i), length, T(0));
  square.transpose_blocks();
}

// ---- packing ----------------------------------------------------------------------------------------------------

// out[i][k] = source[i][k], both with contiguous lines.
template <class S>
void pack_lines(int64_t lines, int64_t length, const S* source, int64_t stride, compute_t<S>* out, int64_t out_stride) {
  constexpr int lanes = ComputeV<S>::size;
  for (int64_t i = 0; i < lines; i++, source += stride, out += out_stride)
    for (int64_t k = 0; k < length; k += lanes) {
      auto x = load(source + k, length - k, compute_t<S>(0));
      store(out + k, x, length - k);
    }
}

// out[i][k] = source[i * row + k * column].
template <class S>
void pack_elements(int64_t lines, int64_t length, const S* source, int64_t row, int64_t column, compute_t<S>* out,
                   int64_t out_stride) {
  for (int64_t i = 0; i < lines; i++, source += row, out += out_stride)
    for (int64_t k = 0; k < length; k++) out[k] = widen(source[k * column]);
}

// out[k][i] = source[i][k] for i < lines, with contiguous lines of the source. Lanes of the last vector beyond the
// lines are written too.
template <class S>
void pack_transposed(int64_t lines, int64_t length, const S* source, int64_t stride, compute_t<S>* out,
                     int64_t out_stride) {
  constexpr int lanes = ComputeV<S>::size;
  for (int64_t i = 0; i < lines; i += lanes) {
    const Lines<S> group(source + i * stride, stride, lines - i);
    for (int64_t k = 0; k < length; k += lanes) {
      Square<compute_t<S>> square;
      load_square(group, k, length - k, square);
#pragma GCC unroll 16
      for (int j = 0; j < lanes; j++)
        if (k + j < length) store(out + (k + j) * out_stride + i, square.rows[j]);
    }
  }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
