// Products of few rows with the transpose of a row-major matrix (a linear layer on a small batch), inner and outer
// products: too little work to be worth packing, so squares of B are transposed in registers and used at once.
#pragma once

#include "parallel.h"
#include "product_block.h"
#include "product_pack.h"
#include "scratch.h"
#include "work.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int FEW_ROWS = 4;
constexpr int SQUARES_AHEAD = 4;

// How far it is from element k of some lines of `length` elements to what will be read SQUARES_AHEAD squares later:
// past their ends that is in the next lines, `distance` elements further.
template <class T>
INLINE_HD int64_t prefetch_distance(int64_t k, int64_t length, int64_t distance) {
  constexpr int64_t ahead = SQUARES_AHEAD * Vector<T>::size;
  return k + ahead < length ? ahead : ahead - length + distance;
}

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
                                int64_t depth, int64_t ahead, ComputeV<S> (*sums)[ROWS]) {
#pragma GCC unroll 2
  for (int g = 0; g < GROUPS; g++) {
    Square<compute_t<S>> square;
    lines[g].template load_square<true>(begin + k, depth, square, ahead);
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
    for (; k + lanes <= length; k += lanes)
      multiply_squares<S, ROWS, groups>(x, lines, begin, k, lanes,
                                        prefetch_distance<compute_t<S>>(begin + k, p.K, groups * lanes * p.B.column),
                                        sums);
    if (k < length) multiply_squares<S, ROWS, groups>(x, lines, begin, k, length - k, 0, sums);
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
    const int64_t ahead = prefetch_distance<compute_t<S>>(k, PRODUCT_CHUNK, V::size * PRODUCT_CHUNK);
    x_chunks.template load_square<true>(k, V::size, xs, ahead);
    y_chunks.template load_square<true>(k, V::size, ys, ahead);
#pragma GCC unroll 16
    for (int q = 0; q < V::size; q++) sums = fma(xs.rows[q], ys.rows[q], sums);
  }
  return sums;
}

// The same of so few chunks that their chains of additions, side by side, take no longer than the transpositions.
constexpr int FEW_CHUNKS = 4;
// Of an inner product, which is read as fast as memory gives: as many as take about as long as to wake a thread.
constexpr int64_t ELEMENTS_PER_THREAD = 1 << 15;
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

// The inner products over `count` whole chunks, of which there are at most as many as lanes.
template <class S>
void inner_products(const S* x, const S* y, int64_t count, compute_t<S>* out) {
  constexpr int lanes = ComputeV<S>::size;
  if (count <= FEW_CHUNKS)
    inner_products_of_few_chunks(x, y, count, out);
  else if (count == lanes)  // a constant makes the chunks' distances constants too
    store(out, inner_products_of_chunks(x, y, lanes));
  else
    store(out, inner_products_of_chunks(x, y, count), count);
}

// One output: successive chunks of K side by side in the lanes, and groups of them side by side in threads.
template <class S>
compute_t<S> inner_product(int64_t K, const S* x, const S* y) {
  using T = compute_t<S>;
  constexpr int64_t lanes = Vector<T>::size, group = lanes * PRODUCT_CHUNK;
  const int64_t whole = K / PRODUCT_CHUNK, rest = whole * PRODUCT_CHUNK;
  Scratch<T> sums(whole + 1);
  cpu::parallel_for(ceil_div(whole, lanes), ELEMENTS_PER_THREAD / group + 1, [=, &sums](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
      const int64_t count = smaller(whole - g * lanes, lanes);
      inner_products(x + g * group, y + g * group, count, sums.data() + g * lanes);
    }
  });
  int64_t chunks = whole;
  if (rest < K || K == 0) {
    T sum(0);
    for (int64_t k = rest; k < K; k++) sum = fma(widen(x[k]), widen(y[k]), sum);
    sums[chunks++] = sum;
  }
  T total = sums[0];
  for (int64_t c = 1; c < chunks; c++) total = add(total, sums[c]);
  return total;
}

// A column times a row: one product of numbers per output, which an fma with +0 and this sum round alike.
template <class S>
void outer_product(const Block<S>& p) {
  using V = ComputeV<S>;
  auto products = [a = p.A.data, row = p.A.row, b = p.B.data](int64_t i, int64_t j, int64_t left) {
    const V x(widen(a[i * row]));
    return add(mul(x, load(b + j, left, compute_t<S>(0))), constant<V>(compute_t<S>(0)));
  };
  with_activation(p.activation, [&](auto f) { finish_with(p, products, f); });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
