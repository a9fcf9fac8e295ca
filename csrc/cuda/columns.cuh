// Sums down columns in the contract's order (order.h): a block sums 32 columns over one segment of rows.
#pragma once

#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Thread (t, w) of a block: column t, and of its 64 lanes those that are w modulo the number of warps.
constexpr int COLUMN_WARPS = 8, LANES_PER_THREAD = SUM_LANES / COLUMN_WARPS;

// y (segments, columns): the sum of the terms of each segment of rows; term(row, column) is asked for every element
// once, by one thread. y may be null, when the terms alone are wanted.
template <class T, class S, class Term>
__global__ void __launch_bounds__(WARP* COLUMN_WARPS)
    sum_columns_kernel(Term term, int64_t rows, int64_t columns, int64_t column_blocks, S* y) {
  __shared__ T partial[COLUMN_WARPS][WARP];
  const int t = threadIdx.x % WARP, w = threadIdx.x / WARP;
  const int64_t column = blockIdx.x % column_blocks * WARP + t, segment = blockIdx.x / column_blocks;
  const int64_t begin = segment * SUM_SEGMENT, end = smaller<int64_t>(rows, begin + SUM_SEGMENT);
  T lanes[LANES_PER_THREAD];
#pragma unroll
  for (int j = 0; j < LANES_PER_THREAD; j++) lanes[j] = T(0);
  if (column < columns)
    for (int64_t row = begin + w; row < end; row += SUM_LANES) {
#pragma unroll
      for (int j = 0; j < LANES_PER_THREAD; j++)
        if (row + j * COLUMN_WARPS < end) lanes[j] = add(lanes[j], term(row + j * COLUMN_WARPS, column));
    }
#pragma unroll
  for (int width = LANES_PER_THREAD / 2; width >= 1; width /= 2)
#pragma unroll
    for (int j = 0; j < width; j++) lanes[j] = add(lanes[j], lanes[j + width]);
  partial[w][t] = lanes[0];
#pragma unroll
  for (int width = COLUMN_WARPS / 2; width >= 1; width /= 2) {
    __syncthreads();
    if (w < width) partial[w][t] = add(partial[w][t], partial[w + width][t]);
  }
  if (y && w == 0 && column < columns) y[segment * columns + column] = narrow<S>(partial[0][t]);
}

template <class T>
struct ArrayTerm {  // of a contiguous array
  const T* x;
  int64_t columns;
  __device__ __forceinline__ T operator()(int64_t row, int64_t column) const { return x[row * columns + column]; }
};

// Elements of device memory that sum_columns() needs.
inline int64_t sum_columns_workspace(int64_t rows, int64_t columns) { return segment_sums(rows) * columns; }

// y (columns,): the sum of term(row, column) over any number of rows.
template <class T, class S, class Term>
cudaError_t sum_columns(Term term, int64_t rows, int64_t columns, S* y, T* workspace, Device device) {
  constexpr int threads = WARP * COLUMN_WARPS;
  const int64_t column_blocks = ceil_div(columns, WARP);
  if (rows <= SUM_SEGMENT)
    return launch(sum_columns_kernel<T, S, Term>, column_blocks, threads, 0, device, term, rows, columns, column_blocks,
                  y);
  const int64_t segments = ceil_div(rows, SUM_SEGMENT);
  cudaError_t error = launch(sum_columns_kernel<T, T, Term>, column_blocks * segments, threads, 0, device, term, rows,
                             columns, column_blocks, y ? workspace : static_cast<T*>(nullptr));
  if (error != cudaSuccess || !y) return error;
  return sum_columns<T>(ArrayTerm<T>{workspace, columns}, segments, columns, y, workspace + segments * columns, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
