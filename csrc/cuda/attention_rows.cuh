// What scaled_dot_product_attention has beside products and softmax: scaled matrices, and masks over rows of scores.
#pragma once

#include "../cpu/scaled_dot_product_attention.h"
#include "../numerics/primitive.h"
#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int SCALE_THREADS = 256;

// y, (heads, rows, columns) contiguous, is x times the scale; y may be x.
template <class T>
__global__ void __launch_bounds__(SCALE_THREADS)
    scale_heads_kernel(Heads<T> x, int64_t rows, int64_t columns, int64_t count, T scale, T* y) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int64_t row = i / columns, head = row / rows;
  const MatrixView<T> m = x.of(head);
  y[i] = mul(m.data[(row - head * rows) * m.row + (i - row * columns) * m.column], scale);
}

// x[h * pitch + i] = 0 for h < heads, i < count.
template <class T>
__global__ void __launch_bounds__(SCALE_THREADS) clear_heads_kernel(int64_t heads, int64_t count, int64_t pitch, T* x) {
  const int64_t i = global_thread();
  if (i < heads * count) x[i / count * pitch + i % count] = T(0);
}

// Rows of scores, (heads, count, keys) contiguous: of the queries from `begin` on, and of the keys that one of them may
// see.
struct ScoreRows {
  int64_t heads, begin, count, keys;
};

// A warp for a row: calls f(key) for its keys.
template <class F>
__device__ __forceinline__ void each_key(int64_t keys, F&& f) {
  for (int64_t j = threadIdx.x % WARP; j < keys; j += WARP) f(j);
}

// Applies the masks; where they hide a row entirely, it becomes 0, and hidden[row] true.
template <class T>
__global__ void __launch_bounds__(ROWS_PER_BLOCK* WARP)
    mask_scores_kernel(Attention<T> p, ScoreRows rows, T* scores, bool* hidden) {
  constexpr T nothing = -static_cast<T>(POSITIVE_INFINITY);
  const int64_t number = static_cast<int64_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (number >= rows.heads * rows.count) return;
  const int64_t head = number / rows.count, query = rows.begin + number % rows.count;
  scores += number * rows.keys;
  const bool adds = p.added.first.data, allows = !adds && p.allowed.first.data;
  const MatrixView<T> added = adds ? p.added.of(head) : MatrixView<T>{};
  const MatrixView<unsigned char> allowed = allows ? p.allowed.of(head) : MatrixView<unsigned char>{};
  int sees = !(adds || allows);
  each_key(rows.keys, [&](int64_t j) {
    T x = p.is_causal && j > query ? nothing : scores[j];
    if (adds) x = add(x, added.data[query * added.row + j * added.column]);
    if (allows) x = add(x, allowed.data[query * allowed.row + j * allowed.column] == 0 ? nothing : T(0));
    scores[j] = x;
    if (!equal(x, nothing)) sees = 1;
  });
#pragma unroll
  for (int width = WARP / 2; width >= 1; width /= 2) sees |= __shfl_xor_sync(ALL_LANES, sees, width);
  if (hidden && threadIdx.x % WARP == 0) hidden[number] = !sees;
  if (!sees) each_key(rows.keys, [&](int64_t j) { scores[j] = T(0); });
}

// The weights of hidden rows become 0.
template <class T>
__global__ void __launch_bounds__(ROWS_PER_BLOCK* WARP)
    hide_weights_kernel(int64_t rows, int64_t keys, const bool* hidden, T* weights) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (number < rows && hidden[number]) each_key(keys, [&](int64_t j) { weights[number * keys + j] = T(0); });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
