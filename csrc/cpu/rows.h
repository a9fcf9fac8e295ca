// Sums in the contract's order (order.h), along contiguous rows and down columns, for any instruction set.
#pragma once

#include "../numerics/order.h"
#include "../numerics/vector.h"
#include "parallel.h"
#include "scratch.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- along a row: the 64 lanes of the sum are SIMD lanes ----------------------------------------------------------

template <class T>
struct LaneSums {
  using V = Vector<T>;
  static constexpr int count = SUM_LANES / V::size;
  V lanes[count];

  INLINE_HD LaneSums() {
#pragma GCC unroll 32
    for (int j = 0; j < count; j++) lanes[j] = constant<V>(T(0));
  }
  INLINE_HD T total() const {
    V folded[count];
#pragma GCC unroll 32
    for (int j = 0; j < count; j++) folded[j] = lanes[j];
#pragma GCC unroll 8
    for (int width = count / 2; width >= 1; width /= 2)
#pragma GCC unroll 32
      for (int j = 0; j < width; j++) folded[j] = add(folded[j], folded[j + width]);
    T rest[V::size];
    store(rest, folded[0]);
#pragma GCC unroll 8
    for (int width = V::size / 2; width >= 1; width /= 2)
#pragma GCC unroll 16
      for (int l = 0; l < width; l++) rest[l] = add(rest[l], rest[l + width]);
    return rest[0];
  }
};

// Sum of n <= 4096 terms. term(i, left) is the Vector of terms i, i + 1, ... of which `left` = n - i exist: it must be
// +0 (not -0 or NaN) in the lanes beyond.
template <class T, class Term>
INLINE_HD T sum_segment(int64_t n, Term&& term) {
  constexpr int width = Vector<T>::size;
  LaneSums<T> sums;
  int64_t i = 0;
  for (; i + SUM_LANES <= n; i += SUM_LANES)
#pragma GCC unroll 32
    for (int j = 0; j < LaneSums<T>::count; j++)
      sums.lanes[j] = add(sums.lanes[j], term(i + j * width, int64_t(width)));
  if (i < n)
#pragma GCC unroll 32
    for (int j = 0; j < LaneSums<T>::count; j++)
      if (i + j * width < n) sums.lanes[j] = add(sums.lanes[j], term(i + j * width, n - i - j * width));
  return sums.total();
}

template <class T>
T sum_array(int64_t n, const T* x);

// Sum of any number of terms.
template <class T, class Term>
INLINE_HD T sum_row(int64_t n, Term&& term) {
  if (n <= SUM_SEGMENT) return sum_segment<T>(n, term);
  int64_t count = (n + SUM_SEGMENT - 1) / SUM_SEGMENT;
  Scratch<T> segments(count);
  for (int64_t s = 0; s < count; s++) {
    int64_t begin = s * SUM_SEGMENT, length = n - begin < SUM_SEGMENT ? n - begin : SUM_SEGMENT;
    segments[s] = sum_segment<T>(length, [&](int64_t i, int64_t left) { return term(begin + i, left); });
  }
  return sum_array<T>(count, segments.data());
}

template <class T>
T sum_array(int64_t n, const T* x) {
  return sum_row<T>(n, [x](int64_t i, int64_t left) { return load(x + i, left, T(0)); });
}

// Sum of any number of terms by all threads. segment(begin, length) is the sum_segment of those terms; ranges shorter
// than `grain` segments are not divided among the threads.
template <class T, class Segment>
T sum_parallel(int64_t n, int64_t grain, Segment&& segment) {
  if (n <= SUM_SEGMENT) return segment(int64_t(0), n);
  int64_t count = (n + SUM_SEGMENT - 1) / SUM_SEGMENT;
  Scratch<T> segments(count);
  cpu::parallel_for(count, grain, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; s++) {
      int64_t begin = s * SUM_SEGMENT;
      segments[s] = segment(begin, n - begin < SUM_SEGMENT ? n - begin : SUM_SEGMENT);
    }
  });
  return sum_array<T>(count, segments.data());
}

// ---- down columns: each SIMD lane is a column of its own, the 64 lanes of its sum lie in memory --------------------

// Sum over at most 4096 rows for a Vector of columns; term(row) is the Vector of that row's terms.
template <class T, class Term>
INLINE_HD Vector<T> sum_columns_segment(int64_t rows, Term&& term) {
  const Vector<T> zero = constant<Vector<T>>(T(0));
  Vector<T> lanes[SUM_LANES];
  if (rows == 0) return zero;
  const int used = rows < SUM_LANES ? static_cast<int>(rows) : SUM_LANES;
  for (int l = 0; l < used; l++) lanes[l] = add(zero, term(l));
  for (int64_t begin = SUM_LANES; begin < rows; begin += SUM_LANES) {
    int64_t length = rows - begin < SUM_LANES ? rows - begin : SUM_LANES;
    for (int64_t l = 0; l < length; l++) lanes[l] = add(lanes[l], term(begin + l));
  }
  return halve_lanes(lanes, used);
}

template <class T>
Vector<T> sum_columns_array(int64_t rows, const Vector<T>* x);

// Sum over any number of rows.
template <class T, class Term>
INLINE_HD Vector<T> sum_columns(int64_t rows, Term&& term) {
  if (rows <= SUM_SEGMENT) return sum_columns_segment<T>(rows, term);
  int64_t count = (rows + SUM_SEGMENT - 1) / SUM_SEGMENT;
  Scratch<Vector<T>> segments(count);
  for (int64_t s = 0; s < count; s++) {
    int64_t begin = s * SUM_SEGMENT, length = rows - begin < SUM_SEGMENT ? rows - begin : SUM_SEGMENT;
    segments[s] = sum_columns_segment<T>(length, [&](int64_t row) { return term(begin + row); });
  }
  return sum_columns_array<T>(count, segments.data());
}

template <class T>
Vector<T> sum_columns_array(int64_t rows, const Vector<T>* x) {
  return sum_columns<T>(rows, [x](int64_t row) { return x[row]; });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
