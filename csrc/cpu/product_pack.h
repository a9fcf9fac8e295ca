// Operands of the product brought into the order the micro-kernel reads: widened, and transposed where need be.
#pragma once

#include <utility>

#include "../numerics/vector.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- transposition of a square of lanes, in registers ---------------------------------------------------------------
// Every step exchanges one bit of the register's number with one bit of the lane's: inside 128 bits by interleaving, then
// 128 bits at a time. Each is one instruction, where a permutation over the whole register would be two with AVX2.

template <class T>
struct Squares {
  static constexpr int lanes = Vector<T>::size;
  static constexpr int block = 16 / static_cast<int>(sizeof(T));  // lanes in 128 bits
  static constexpr int blocks = lanes / block;

  // Lane of the pair (a, b) that comes to lane l: 0 .. lanes - 1 are a's, the rest b's.
  static constexpr int interleaved(int l, int upper) {
    return l / block * block + upper * (block / 2) + l % block / 2 + (l % 2) * lanes;
  }
  static constexpr int alternate_blocks(int l, int odd) {
    int from_b = l / block * 2 / blocks;
    return (l / block * 2 % blocks + odd) * block + l % block + from_b * lanes;
  }

  template <int... L>
  static INLINE_HD void interleave(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, L...>) {
    auto low = __builtin_shufflevector(a.v, b.v, interleaved(L, 0)...);
    auto high = __builtin_shufflevector(a.v, b.v, interleaved(L, 1)...);
    a.v = low, b.v = high;
  }
  template <int... L>
  static INLINE_HD void exchange_blocks(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, L...>) {
    auto even = __builtin_shufflevector(a.v, b.v, alternate_blocks(L, 0)...);
    auto odd = __builtin_shufflevector(a.v, b.v, alternate_blocks(L, 1)...);
    a.v = even, b.v = odd;
  }
};

// Pairs (i, i + DISTANCE); the distances go 2, 1 inside 128 bits of float, 1 of double, then upwards.
template <int DISTANCE, class T>
INLINE_HD void transpose_step(Vector<T>* rows) {
  using Q = Squares<T>;
  constexpr std::make_integer_sequence<int, Q::lanes> all{};
#pragma GCC unroll 8
  for (int pair = 0; pair < Q::lanes / 2; pair++) {
    const int i = pair / DISTANCE * DISTANCE * 2 + pair % DISTANCE;
    if constexpr (DISTANCE < Q::block)
      Q::interleave(rows[i], rows[i + DISTANCE], all);
    else
      Q::exchange_blocks(rows[i], rows[i + DISTANCE], all);
  }
}

template <class T>
INLINE_HD void transpose(Vector<T>* rows) {
  using Q = Squares<T>;
  if constexpr (Q::block == 4) transpose_step<2>(rows);
  transpose_step<1>(rows);
  if constexpr (Q::blocks >= 2) transpose_step<Q::block>(rows);
  if constexpr (Q::blocks >= 4) transpose_step<2 * Q::block>(rows);
}

// A square of lines[i][k], i < count and k < length, transposed: squares[k] holds lane i. The last line stands in for those
// that do not exist.
template <class S>
INLINE_HD void load_transposed(const S* lines, int64_t stride, int64_t count, int64_t length, ComputeV<S>* square) {
  constexpr int lanes = ComputeV<S>::size;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; i++) {
    const S* line = lines + (i < count ? i : count - 1) * stride;
    square[i] = load(line, length, compute_t<S>(0));
  }
  transpose(square);
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

// out[k][i] = source[i][k] for i < lines, with contiguous lines of the source. Lanes of the last vector beyond the lines
// are written too.
template <class S>
void pack_transposed(int64_t lines, int64_t length, const S* source, int64_t stride, compute_t<S>* out,
                     int64_t out_stride) {
  constexpr int lanes = ComputeV<S>::size;
  for (int64_t i = 0; i < lines; i += lanes)
    for (int64_t k = 0; k < length; k += lanes) {
      ComputeV<S> square[lanes];
      load_transposed(source + i * stride + k, stride, lines - i, length - k, square);
#pragma GCC unroll 16
      for (int j = 0; j < lanes; j++)
        if (k + j < length) store(out + (k + j) * out_stride + i, square[j]);
    }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
