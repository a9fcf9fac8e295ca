// Inner products, whose chunks go side by side, and outer products.
#pragma once

#include "parallel.h"
#include "product_vector.h"
#include "scratch.h"
#include "work.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Lane i: the inner product over chunk i of x and y, whole chunks.
template <class L>
INLINE_HD auto inner_products_of_chunks(const L& x, const L& y) {
  using S = typename L::Element;
  using V = ComputeV<S>;
  V sums = constant<V>(compute_t<S>(0));
  for (int64_t k = 0; k < PRODUCT_CHUNK; k += V::size) {
    Square<compute_t<S>> xs, ys;
    load_square(x, k, V::size, xs);
    load_square(y, k, V::size, ys);
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
  auto chunks = [](const S* p) {
    return lines_in_turn(p, int64_t(PRODUCT_CHUNK), PRODUCT_CHUNK, lanes * PRODUCT_CHUNK);
  };
  if (count <= FEW_CHUNKS)
    inner_products_of_few_chunks(x, y, count, out);
  else if (count == lanes)
    store(out, inner_products_of_chunks(chunks(x), chunks(y)));
  else
    store(out, inner_products_of_chunks<Lines<S>>({x, PRODUCT_CHUNK, count}, {y, PRODUCT_CHUNK, count}), count);
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
