// Products of few rows with the transpose of a row-major matrix (a linear layer on a small batch), inner and outer
// products: too little work to be worth packing, so squares of B are transposed in registers and used at once.
#pragma once

#include "product_block.h"
#include "product_pack.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int FEW_ROWS = 4;
constexpr int SQUARES_AHEAD = 2;

// One chunk of A's rows, contiguous and in the compute type: where they lie, or a copy.
template <class S, int ROWS>
struct ChunkOfRows {
  using T = compute_t<S>;
  const T* data = copy_;
  int64_t row = PRODUCT_CHUNK;

  INLINE_HD ChunkOfRows(const MatrixView<S>& A, int64_t k, int64_t length) {
    const S* source = A.data + k * A.column;
    if constexpr (std::is_same_v<S, T>)
      if (A.column == 1) {
        data = source, row = A.row;
        return;
      }
    pack_elements(ROWS, length, source, A.row, A.column, copy_, row);
  }

 private:
  T copy_[ROWS * PRODUCT_CHUNK];
};

// Adds to sums[g][i] row i of x times group g of the columns, for `depth` <= lanes elements of K from k on.
template <class S, int ROWS, int GROUPS>
INLINE_HD void multiply_squares(const ChunkOfRows<S, ROWS>& x, const Lines<S>* lines, int64_t begin, int64_t k,
                                int64_t depth, ComputeV<S> (*sums)[ROWS]) {
#pragma GCC unroll 2
  for (int g = 0; g < GROUPS; g++) {
    Square<compute_t<S>> square;
    lines[g].template load_square<SQUARES_AHEAD>(begin + k, depth, square);
#pragma GCC unroll 16
    for (int q = 0; q < ComputeV<S>::size; q++)
      if (q < depth)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++)
          sums[g][i] = fma(ComputeV<S>(x.data[i * x.row + k + q]), square.rows[q], sums[g][i]);
  }
}

// ROWS rows by one or two vectors of columns; B's columns are contiguous lines.
template <class S, int ROWS, bool TWO>
void multiply_few(const Block<S>& p, compute_t<S>* total, int64_t total_row) {
  using V = ComputeV<S>;
  constexpr int lanes = V::size, groups = TWO ? 2 : 1;
  const Lines<S> lines[] = {{p.B.data, p.B.column, p.N},
                            {p.B.data + (groups - 1) * lanes * p.B.column, p.B.column, p.N - (groups - 1) * lanes}};
  V totals[groups][ROWS];
  int64_t begin = 0;
  do {
    const int64_t length = p.K - begin < PRODUCT_CHUNK ? p.K - begin : PRODUCT_CHUNK;
    const ChunkOfRows<S, ROWS> x(p.A, begin, length);
    V sums[groups][ROWS];
#pragma GCC unroll 2
    for (int g = 0; g < groups; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) sums[g][i] = constant<V>(compute_t<S>(0));
    int64_t k = 0;
    for (; k + lanes <= length; k += lanes) multiply_squares<S, ROWS, groups>(x, lines, begin, k, lanes, sums);
    if (k < length) multiply_squares<S, ROWS, groups>(x, lines, begin, k, length - k, sums);
#pragma GCC unroll 2
    for (int g = 0; g < groups; g++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) totals[g][i] = begin == 0 ? sums[g][i] : add(totals[g][i], sums[g][i]);
    begin += PRODUCT_CHUNK;
  } while (begin < p.K);
#pragma GCC unroll 2
  for (int g = 0; g < groups; g++)
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) store(total + i * total_row + g * lanes, totals[g][i], p.N - g * lanes);
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
      multiply_few<S, ROWS, true>(strip, total, total_row);
    else
      multiply_few<S, ROWS, false>(strip, total, total_row);
    finish(strip, total, total_row);
  }
}

// Lane i: the inner product over chunk i of x and y, of which `count` are there and whole.
template <class S>
INLINE_HD ComputeV<S> inner_products_of_chunks(const S* x, const S* y, int64_t count) {
  using V = ComputeV<S>;
  const Lines<S> x_chunks(x, PRODUCT_CHUNK, count), y_chunks(y, PRODUCT_CHUNK, count);
  V sums = constant<V>(compute_t<S>(0));
  for (int64_t k = 0; k < PRODUCT_CHUNK; k += V::size) {
    Square<compute_t<S>> xs, ys;
    x_chunks.template load_square<SQUARES_AHEAD>(k, V::size, xs);
    y_chunks.template load_square<SQUARES_AHEAD>(k, V::size, ys);
#pragma GCC unroll 16
    for (int q = 0; q < V::size; q++) sums = fma(xs.rows[q], ys.rows[q], sums);
  }
  return sums;
}

// The same of so few chunks that their chains of additions, side by side, take no longer than the transpositions.
constexpr int FEW_CHUNKS = 4;
template <class S>
void inner_products_of_few_chunks(const S* x, const S* y, int64_t count, compute_t<S>* out) {
  compute_t<S> sums[FEW_CHUNKS] = {};
  int64_t chunk[FEW_CHUNKS];
  for (int i = 0; i < FEW_CHUNKS; i++) chunk[i] = (i < count ? i : count - 1) * PRODUCT_CHUNK;
  for (int64_t k = 0; k < PRODUCT_CHUNK; k++)
#pragma GCC unroll 4
    for (int i = 0; i < FEW_CHUNKS; i++) sums[i] = fma(widen(x[chunk[i] + k]), widen(y[chunk[i] + k]), sums[i]);
  for (int i = 0; i < FEW_CHUNKS; i++) out[i] = sums[i];
}

// One output: successive chunks of K side by side in the lanes.
template <class S>
compute_t<S> inner_product(int64_t K, const S* x, const S* y) {
  using T = compute_t<S>;
  constexpr int lanes = Vector<T>::size;
  T total(0);
  auto append = [&](int64_t chunk, T sum) { total = chunk == 0 ? sum : add(total, sum); };
  const int64_t whole = K / PRODUCT_CHUNK, rest = whole * PRODUCT_CHUNK;
  for (int64_t c = 0; c < whole;) {
    const S *xs = x + c * PRODUCT_CHUNK, *ys = y + c * PRODUCT_CHUNK;
    const int64_t left = whole - c;
    T chunks[lanes < FEW_CHUNKS ? FEW_CHUNKS : lanes];
    int64_t count = left < FEW_CHUNKS ? left : FEW_CHUNKS;
    if (left > FEW_CHUNKS) {
      count = left < lanes ? left : lanes;
      // A constant count, wherever it is one, makes the chunks' distances constants too.
      store(chunks, count == lanes ? inner_products_of_chunks(xs, ys, lanes) : inner_products_of_chunks(xs, ys, count));
    } else {
      inner_products_of_few_chunks(xs, ys, count, chunks);
    }
    for (int64_t i = 0; i < count; i++) append(c + i, chunks[i]);
    c += count;
  }
  if (rest < K || K == 0) {
    T sum(0);
    for (int64_t k = rest; k < K; k++) sum = fma(widen(x[k]), widen(y[k]), sum);
    append(whole, sum);
  }
  return total;
}

// A column times a row: one product of numbers per output, which an fma with +0 and this sum round alike.
template <class S>
void outer_product(const Block<S>& p) {
  using V = ComputeV<S>;
  auto products = [&p](int64_t i, int64_t j, int64_t left) {
    const V a(widen(p.A.data[i * p.A.row]));
    return add(mul(a, load(p.B.data + j, left, compute_t<S>(0))), constant<V>(compute_t<S>(0)));
  };
  with_activation(p.activation, [&](auto f) { finish_with(p, products, f); });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
