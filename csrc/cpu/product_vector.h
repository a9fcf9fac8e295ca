// Products of few rows with the transpose of a row-major matrix (a linear layer on a small batch), and inner products:
// too little work to be worth packing, so squares of B are transposed in registers and used at once.
#pragma once

#include "product_block.h"
#include "product_pack.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int FEW_ROWS = 4;

// One chunk of A's rows in the compute type: where they lie, or a widened copy.
template <class S, int ROWS>
struct WidenedRows {
  using T = compute_t<S>;
  const T* data;
  int64_t row, column;

  INLINE_HD WidenedRows(const MatrixView<S>& A, int64_t k, int64_t length) {
    if constexpr (SUMS_IN_C<S>) {
      data = A.data + k * A.column, row = A.row, column = A.column;
    } else {
      pack_elements(ROWS, length, A.data + k * A.column, A.row, A.column, copy_, int64_t(PRODUCT_CHUNK));
      data = copy_, row = PRODUCT_CHUNK, column = 1;
    }
  }
  INLINE_HD Vector<T> operator()(int i, int64_t k) const { return Vector<T>(data[i * row + k * column]); }

 private:
  T copy_[SUMS_IN_C<S> ? 1 : ROWS * PRODUCT_CHUNK];
};

// ROWS rows by the first `p.N` <= GROUPS vectors of columns; B's columns are contiguous lines.
template <class S, int ROWS, int GROUPS>
void multiply_few(const Block<S>& p, compute_t<S>* total, int64_t total_row) {
  using V = ComputeV<S>;
  constexpr int lanes = V::size;
  V totals[GROUPS][ROWS];
  int64_t begin = 0;
  do {
    int64_t length = p.K - begin < PRODUCT_CHUNK ? p.K - begin : PRODUCT_CHUNK;
    WidenedRows<S, ROWS> x(p.A, begin, length);
    V sums[GROUPS][ROWS];
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) sums[g][i] = constant<V>(compute_t<S>(0));
    for (int64_t k = 0; k < length; k += lanes) {
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; g++) {
        V square[lanes];
        const S* lines = p.B.data + g * lanes * p.B.column + begin + k;
        load_transposed(lines, p.B.column, p.N - g * lanes, length - k, square);
#pragma GCC unroll 16
        for (int q = 0; q < lanes; q++)
          if (k + q < length)
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) sums[g][i] = fma(x(i, k + q), square[q], sums[g][i]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) totals[g][i] = begin == 0 ? sums[g][i] : add(totals[g][i], sums[g][i]);
    begin += PRODUCT_CHUNK;
  } while (begin < p.K);
#pragma GCC unroll 4
  for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
      store(total + i * total_row + g * lanes, totals[g][i], p.N - g * lanes);
}

template <class S, int ROWS>
void multiply_few_rows(const Block<S>& p) {
  constexpr int lanes = ComputeV<S>::size, groups = 2;
  for (int64_t n = 0; n < p.N; n += groups * lanes) {
    int64_t columns = p.N - n < groups * lanes ? p.N - n : groups * lanes;
    Block<S> strip = part(p, 0, ROWS, n, columns);
    compute_t<S> own[SUMS_IN_C<S> ? 1 : ROWS * groups * lanes];
    compute_t<S>* total = own;
    int64_t total_row = groups * lanes;
    if constexpr (SUMS_IN_C<S>) total = strip.C, total_row = strip.c_row;
    if (columns > lanes)
      multiply_few<S, ROWS, groups>(strip, total, total_row);
    else
      multiply_few<S, ROWS, 1>(strip, total, total_row);
    finish(strip, total, total_row);
  }
}

// One output: the lanes are successive chunks of K.
template <class S>
compute_t<S> inner_product(int64_t K, const S* x, const S* y) {
  using T = compute_t<S>;
  using V = ComputeV<S>;
  T total(0);
  bool first = true;
  auto append = [&](T chunk) {
    total = first ? chunk : add(total, chunk);
    first = false;
  };
  int64_t whole = K / PRODUCT_CHUNK;
  for (int64_t c = 0; c < whole; c += V::size) {
    V sums = constant<V>(T(0));
    for (int64_t k = c * PRODUCT_CHUNK; k < (c + 1) * PRODUCT_CHUNK; k += V::size) {
      V xs[V::size], ys[V::size];
      load_transposed(x + k, PRODUCT_CHUNK, whole - c, V::size, xs);
      load_transposed(y + k, PRODUCT_CHUNK, whole - c, V::size, ys);
#pragma GCC unroll 16
      for (int q = 0; q < V::size; q++) sums = fma(xs[q], ys[q], sums);
    }
    T chunks[V::size];
    store(chunks, sums);
    for (int i = 0; i < V::size && c + i < whole; i++) append(chunks[i]);
  }
  int64_t k = whole * PRODUCT_CHUNK;
  if (k < K || K == 0) {
    T sum(0);
    for (; k < K; k++) sum = fma(widen(x[k]), widen(y[k]), sum);
    append(sum);
  }
  return total;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
