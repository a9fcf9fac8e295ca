// Rows on the threads of a warp, a block or a cluster: their columns, largest elements and sums.
#pragma once

#include "cluster_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- a row's threads ------------------------------------------------------------------------------------------------
//
//   largest(f, x...), sum(f, x...)
//       over the columns: f(j, c, x[c]...) is called for column c by the thread that has it; the results of largest and
//       sum are known to all threads
//   store(y, f, x...), sum_into(y, f, x...)
//       the same, and y[c] becomes the result; sum_into where y is not null
//   held
//       how many columns a thread has at most, where it may keep them in registers: column c is then its j-th in every
//       call, and j a constant; else 0
//   staged
//       whether shared memory has room for arrays of a row, stage<T>(0), stage<T>(1)...; threads find their own
//       columns there without a barrier
//   together
//       how many columns memory moves at once: more than one where rows are contiguous and aligned to so many

// How the columns of a row lie in memory: groups of columns_together at multiples of as many, side by side at any
// address, or apart.
enum class RowLayout { groups, contiguous, strided };

template <class S>
constexpr int columns_together = sizeof(S) == 8 ? 2 : 4;
// Of columns that registers hold: those that lie apart have an address each, and doubles take two registers.
template <class S>
constexpr int held_columns(RowLayout layout) {
  return 8 * (layout == RowLayout::strided ? 1 : columns_together<S>);
}

// The row of this thread, and whether it is the one that writes what a row has one of.
template <class Row>
__device__ __forceinline__ int64_t own_row() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (Row::of_cluster) return INT64_MAX;  // never launched there: no code
#endif
  if constexpr (Row::of_cluster) return blockIdx.x / cluster_size();
  return Row::of_block ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
}
template <class Row>
__device__ __forceinline__ bool is_first_of_row() {
  if constexpr (Row::of_cluster)
    if (cluster_rank() != 0) return false;
  return threadIdx.x % (Row::of_block ? blockDim.x : WARP) == 0;
}

struct RowGrid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
  int cluster = 1;
};
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const RowGrid& grid, Device device, Arguments... arguments) {
  return launch_clusters(kernel, grid.blocks, grid.cluster, grid.threads, grid.shared_bytes, device, arguments...);
}

// The layout of rows of that length, `row_stride` elements of S apart at their beginnings.
template <class S, class... X>
RowLayout row_layout(int64_t columns, int64_t inner, int64_t row_stride, const X*... arrays) {
  constexpr int together = columns_together<S>;
  if (inner != 1) return RowLayout::strided;
  const bool in_groups = columns % together == 0 && row_stride % together == 0 && are_aligned(arrays...);
  return in_groups ? RowLayout::groups : RowLayout::contiguous;
}

// Calls launch_on(grid, row) with the kind of row, as a null pointer to it, that rows of this length want.
// `staged_arrays`: how many arrays of a row a kernel stages where there is room.
template <class S, class LaunchOn>
cudaError_t with_rows(int64_t rows, int64_t columns, RowLayout layout, int staged_arrays, Device device,
                      LaunchOn&& launch_on) {
  const RowGrid warps{ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0};
  auto blocks_of = [&](int cluster, int64_t bytes) {
    const bool alone = bytes > SHARED_BYTES_OF_SEVERAL && sizeof(S) < 8;
    return RowGrid{rows * cluster, alone ? MOST_BLOCK_ROW_THREADS : BLOCK_ROW_THREADS, bytes, cluster};
  };
  auto blocks = [&](int arrays) { return blocks_of(1, block_row_bytes<compute_t<S>>(columns, arrays)); };
  auto has_room = [&](const RowGrid& grid) { return grid.shared_bytes <= device.shared_bytes; };
  if (!has_room(blocks(0))) return cudaErrorInvalidConfiguration;  // above 1e11 columns
  if (layout == RowLayout::strided) {
    constexpr int held = held_columns<S>(RowLayout::strided);
    if (columns <= held * WARP) return launch_on(warps, static_cast<WarpRow<held, 1>*>(nullptr));
    if (columns <= SUM_SEGMENT) return launch_on(warps, static_cast<WarpRow<0, 1>*>(nullptr));
    return launch_on(blocks(0), static_cast<BlockRow<1, false>*>(nullptr));
  }
  constexpr int held = held_columns<S>(RowLayout::contiguous), n = columns_together<S>;
  const bool in_groups = layout == RowLayout::groups;
  if (columns <= held * WARP)
    return in_groups ? launch_on(warps, static_cast<WarpRow<held, n>*>(nullptr))
                     : launch_on(warps, static_cast<WarpRow<held, 1, true>*>(nullptr));
  const RowGrid staging = blocks(staged_arrays);
  if (has_room(staging))
    return in_groups ? launch_on(staging, static_cast<BlockRow<n, true>*>(nullptr))
                     : launch_on(staging, static_cast<BlockRow<1, true>*>(nullptr));
  if constexpr (sizeof(S) < 8)  // float64 has too few such rows for the size of its kernels
    for (int cluster = 2; cluster <= device.most_cluster; cluster *= 2) {
      const int64_t bytes = cluster_row_bytes<compute_t<S>>(columns, cluster, staged_arrays);
      if (bytes > SHARED_BYTES_OF_SEVERAL && cluster < device.most_cluster) continue;
      const RowGrid sharing = blocks_of(cluster, bytes);
      if (has_room(sharing))
        return in_groups ? launch_on(sharing, static_cast<ClusterRow<n>*>(nullptr))
                         : launch_on(sharing, static_cast<ClusterRow<1>*>(nullptr));
    }
  return in_groups ? launch_on(blocks(0), static_cast<BlockRow<n, false>*>(nullptr))
                   : launch_on(blocks(0), static_cast<BlockRow<1, false>*>(nullptr));
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
