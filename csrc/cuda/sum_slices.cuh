// Sums by the sum rule over one index of an array of three: what the gradient of a broadcast argument is.
#pragma once

#include "../cpu/reduce.h"
#include "columns.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class S>
struct SliceTerm {  // a column is a slice: those of one outer index lie side by side
  static constexpr int groups = ElementGroup<S>::size;
  SliceSum<S> p;
  bool aligned;  // so are groups, which have one outer index
  using Loaded = ElementGroup<S>;
  __device__ __forceinline__ Loaded load(int64_t row, int64_t slice, int64_t left, bool aligned) const {
    const S* x = p.x + row * p.x_row;
    if (aligned) return load_group(x + slice / p.inner * p.x_outer + slice % p.inner, left, true);
    ElementGroup<S> group = {};
#pragma unroll
    for (int j = 0; j < groups; j++)
      if (j < left) group.values[j] = x[(slice + j) / p.inner * p.x_outer + (slice + j) % p.inner];
    return group;
  }
  __device__ __forceinline__ Terms<compute_t<S>, groups> terms(const Loaded& loaded, int64_t, int64_t, int64_t,
                                                               bool) const {
    return widen(loaded);
  }
};

// y (slices, segments): a warp per segment of a slice whose elements are contiguous.
template <class S, class Y>
__global__ void __launch_bounds__(WARP* ROWS_PER_BLOCK)
    sum_contiguous_slices_kernel(SliceSum<S> p, int64_t segments, Y* y) {
  using T = compute_t<S>;
  const int64_t number = own_row<WarpRow<0, 1>>();
  if (number >= p.outer * p.inner * segments) return;
  const int64_t slice = number / segments, begin = number % segments * SUM_SEGMENT;
  const S* x = p.x + slice / p.inner * p.x_outer + slice % p.inner * p.x_inner + begin;
  const T sum = sum_segment<T>(smaller<int64_t>(p.rows - begin, SUM_SEGMENT), [&](int i) { return widen(x[i]); });
  if (threadIdx.x % WARP == 0) y[number] = narrow<Y>(sum);
}

template <class S, class Y>
cudaError_t sum_contiguous_slices(const SliceSum<S>& p, Y* y, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  const int64_t slices = p.outer * p.inner, segments = segments_of(p.rows);
  auto sum_to = [&](auto* to) {
    return launch(sum_contiguous_slices_kernel<S, std::remove_pointer_t<decltype(to)>>,
                  ceil_div(slices * segments, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, device, p, segments, to);
  };
  if (segments == 1) return sum_to(y);
  const cudaError_t error = sum_to(workspace);
  if (error != cudaSuccess) return error;
  const SliceSum<T> rest{slices, segments, 1, workspace, segments, 1, 1, nullptr};
  return sum_contiguous_slices(rest, y, workspace + slices * segments, device);
}

// Elements of device memory that sum_slices() needs.
template <class S>
int64_t sum_slices_workspace(const SliceSum<S>& p) {
  return segment_sums(p.rows) * p.outer * p.inner;
}

template <class S>
cudaError_t sum_slices(const SliceSum<S>& p, compute_t<S>* workspace, Device device) {
  if (p.x_inner == 1 && (p.inner > 1 || p.x_row != 1)) {
    constexpr int together = SliceTerm<S>::groups;
    const bool aligned = are_aligned(p.x) && (p.inner | p.x_outer | p.x_row) % together == 0;
    return sum_columns<compute_t<S>>(SliceTerm<S>{p, aligned}, p.rows, p.outer * p.inner, p.y, workspace, device);
  }
  return sum_contiguous_slices(p, p.y, workspace, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
