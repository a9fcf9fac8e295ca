// Sums down columns in the contract's order (order.h): a block sums 32 columns over one segment of rows.
#pragma once

#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int COLUMN_THREADS = 256;

// y (segments, columns): the sum of the terms of each segment of rows. A thread has Term::groups neighbouring columns,
// of which `left` exist: term.load(row, column, left, aligned) and then term.terms(loaded, row, column, left, aligned)
// are called for each group of a row once, by one thread, with `aligned` where term.aligned says that groups are, and
// all of this one exists. y may be null, when the terms alone are wanted.
template <class T, class S, class Term>
__global__ void __launch_bounds__(COLUMN_THREADS, sizeof(T) == 4 ? 3 : 1)
    sum_columns_kernel(Term term, int64_t rows, int64_t columns, int64_t column_blocks, S* y) {
  // Threads side by side, and one below the other; these have the lanes that are theirs modulo `down`.
  constexpr int together = Term::groups, across = WARP / together, down = COLUMN_THREADS / across;
  constexpr int lanes_each = SUM_LANES / down;
  __shared__ __align__(16) T partial[down][WARP];
  const int own = threadIdx.x % across * together, w = threadIdx.x / across;
  const int64_t first = blockIdx.x % column_blocks * WARP, segment = blockIdx.x / column_blocks;
  const int64_t column = first + own, left = columns - column;
  const int64_t begin = segment * SUM_SEGMENT, end = smaller<int64_t>(rows, begin + SUM_SEGMENT);
  Terms<T, together> lanes[lanes_each] = {};
  const bool aligned = term.aligned && left >= together;
  // Those of the thread's next rows, sweeps * lanes_each of them; `whole`: all of these exist, and are aligned.
  auto add_terms = [&](auto sweeps, int64_t row, bool whole) {
    constexpr int count = decltype(sweeps)::value * lanes_each;
    const int64_t left_here = whole ? together : left;
    typename Term::Loaded loaded[count];
#pragma unroll
    for (int j = 0; j < count; j++)
      if (whole || row + j * down < end) loaded[j] = term.load(row + j * down, column, left_here, whole || aligned);
#pragma unroll
    for (int j = 0; j < count; j++)
      if (whole || row + j * down < end)
        lanes[j % lanes_each] =
            add(lanes[j % lanes_each], term.terms(loaded[j], row + j * down, column, left_here, whole || aligned));
  };
  int64_t row = begin + w;
  if (aligned)  // twice as many loads are under way
    for (; row + (2 * lanes_each - 1) * down < end; row += 2 * SUM_LANES)
      add_terms(std::integral_constant<int, 2>{}, row, true);
  if (left > 0)
    for (; row < end; row += SUM_LANES) add_terms(std::integral_constant<int, 1>{}, row, false);
#pragma unroll
  for (int width = lanes_each / 2; width >= 1; width /= 2)
#pragma unroll
    for (int j = 0; j < width; j++) lanes[j] = add(lanes[j], lanes[j + width]);
#pragma unroll
  for (int k = 0; k < together; k++) partial[w][own + k] = lanes[0].values[k];
  const int t = threadIdx.x % WARP;
#pragma unroll
  for (int width = down / 2; width >= 1; width /= 2) {
    __syncthreads();
    for (int l = threadIdx.x / WARP; l < width; l += COLUMN_THREADS / WARP)
      partial[l][t] = add(partial[l][t], partial[l + width][t]);
  }
  if (y && threadIdx.x < WARP && first + t < columns) y[segment * columns + first + t] = narrow<S>(partial[0][t]);
}

template <class T>
struct ArrayTerm {  // of a contiguous array; `aligned`: so are groups of its rows
  static constexpr int groups = ElementGroup<T>::size;
  const T* x;
  int64_t columns;
  bool aligned;
  using Loaded = ElementGroup<T>;
  __device__ __forceinline__ Loaded load(int64_t row, int64_t column, int64_t left, bool aligned) const {
    return load_group(x + row * columns + column, left, aligned);
  }
  __device__ __forceinline__ Terms<T, groups> terms(const Loaded& loaded, int64_t, int64_t, int64_t, bool) const {
    return widen(loaded);
  }
};
template <class T>
ArrayTerm<T> array_term(const T* x, int64_t columns) {
  return {x, columns, are_aligned(x) && columns % ArrayTerm<T>::groups == 0};
}

// Elements of device memory that sum_columns() needs.
inline int64_t sum_columns_workspace(int64_t rows, int64_t columns) { return segment_sums(rows) * columns; }

// y (columns,): the sum of the terms over any number of rows.
template <class T, class S, class Term>
cudaError_t sum_columns(Term term, int64_t rows, int64_t columns, S* y, T* workspace, Device device) {
  const int64_t column_blocks = ceil_div(columns, WARP);
  if (rows <= SUM_SEGMENT)
    return launch(sum_columns_kernel<T, S, Term>, column_blocks, COLUMN_THREADS, 0, device, term, rows, columns,
                  column_blocks, y);
  const int64_t segments = ceil_div(rows, SUM_SEGMENT);
  cudaError_t error = launch(sum_columns_kernel<T, T, Term>, column_blocks * segments, COLUMN_THREADS, 0, device, term,
                             rows, columns, column_blocks, y ? workspace : static_cast<T*>(nullptr));
  if (error != cudaSuccess || !y) return error;
  return sum_columns<T>(array_term<T>(workspace, columns), segments, columns, y, workspace + segments * columns,
                        device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
