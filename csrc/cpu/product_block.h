// A part of one product that one thread computes, and what happens to its finished sums.
#pragma once

#include <numeric>

#include "../numerics/activations.h"
#include "../numerics/order.h"
#include "../numerics/vector.h"
#include "product.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class S>
struct Block {
  int64_t M, N, K;
  MatrixView<S> A, B;
  S* C;
  S* preactivation;
  int64_t c_row;
  const S* bias;
  int64_t bias_step;  // 0: one bias for all columns
  Activation activation;
  bool accumulates;
};

template <class S>
INLINE_HD Block<S> part(Block<S> p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  p.M = rows, p.N = columns;
  p.A.data += row * p.A.row;
  p.B.data += column * p.B.column;
  p.C += row * p.c_row + column;
  if (p.preactivation) p.preactivation += row * p.c_row + column;
  if (p.bias) p.bias += column * p.bias_step;
  return p;
}

// Sums are kept in C itself where its type can hold them.
template <class S>
constexpr bool SUMS_IN_C = std::is_same_v<S, compute_t<S>>;

template <class S>
INLINE_HD bool sums_are_results(const Block<S>& p) {
  return SUMS_IN_C<S> && !p.bias && !p.preactivation && p.activation == Activation::none;
}

// Lines of memory so many bytes apart share a set of the nearest cache, where few stay.
constexpr int64_t SET_DISTANCE = 4096, LINES_IN_A_SET = 4;
// Whether so many lines, `distance` bytes apart, push none of each other out of it.
inline bool stay_in_sets(int64_t lines, int64_t distance) {
  return distance > 0 && lines * std::gcd(distance, SET_DISTANCE) <= LINES_IN_A_SET * SET_DISTANCE;
}

// C = activation(total + bias) over the whole block; totals(i, j, left) are those of columns j, j + 1, ..., `left` at
// most. Everything by value: a store of lanes might change what a reference refers to.
template <class S, class Totals, class F>
void finish_with(const Block<S> p, const Totals totals, F f) {
  using V = ComputeV<S>;
  auto vector = [=](int64_t i, int64_t j, int64_t left) {
    const int64_t at = i * p.c_row + j;
    V z = totals(i, j, left);
    if (p.bias) z = add(z, p.bias_step ? load(p.bias + j, left, compute_t<S>(0)) : V(widen(*p.bias)));
    if (p.preactivation) store(p.preactivation + at, z, left);
    store(p.C + at, f.value(z), left);
  };
  for (int64_t i = 0; i < p.M; i++) {
    int64_t j = 0;
    for (; j + V::size <= p.N; j += V::size) vector(i, j, V::size);
    if (j < p.N) vector(i, j, p.N - j);
  }
}
template <class S>
void finish(const Block<S>& p, const compute_t<S>* total, int64_t total_row) {
  if (sums_are_results(p)) return;
  auto totals = [=](int64_t i, int64_t j, int64_t left) {
    return load(total + i * total_row + j, left, compute_t<S>(0));
  };
  with_activation(p.activation, [&](auto f) { finish_with(p, totals, f); });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
