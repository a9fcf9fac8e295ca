// Sums of whole arrays by the sum rule (order.h): a block per segment, then one warp over the segments' sums.
#pragma once

#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int SEGMENT_THREADS = 256;

// segments[b] for block b: the sum of the terms of segment b. term(i) is asked for every element once, by one thread;
// all threads of the block compute terms, since a lane's chain of 64 adds leaves only one warp with work.
template <class T, class Term>
__global__ void __launch_bounds__(SEGMENT_THREADS) sum_segments_kernel(Term term, int64_t n, T* segments) {
  __shared__ T terms[SUM_SEGMENT];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * SUM_SEGMENT;
  const int length = static_cast<int>(smaller<int64_t>(n - begin, SUM_SEGMENT));
  for (int i = threadIdx.x; i < length; i += SEGMENT_THREADS) terms[i] = term(begin + i);
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  const T sum = sum_segment<T>(length, [&](int i) { return terms[i]; });
  if (threadIdx.x == 0) segments[blockIdx.x] = sum;
}

// finish(sum) by one thread, for the sum of `count` segments.
template <class T, class Finish>
__global__ void __launch_bounds__(WARP) fold_segments_kernel(int64_t count, T* segments, Finish finish) {
  const T sum = count ? sum_array_in_place(count, segments) : T(0);
  if (threadIdx.x == 0) finish(sum);
}

// Elements of device memory that sum_terms() needs.
inline int64_t sum_terms_workspace(int64_t n) { return ceil_div(n, SUM_SEGMENT); }

// Calls finish on the device with the sum of term(i) over i < n.
template <class T, class Term, class Finish>
cudaError_t sum_terms(Term term, int64_t n, Finish finish, T* workspace, Device device) {
  const int64_t segments = ceil_div(n, SUM_SEGMENT);
  const cudaError_t error =
      launch(sum_segments_kernel<T, Term>, segments, SEGMENT_THREADS, 0, device, term, n, workspace);
  if (error != cudaSuccess) return error;
  return launch(fold_segments_kernel<T, Finish>, 1, WARP, 0, device, segments, workspace, finish);
}

// ---- what a sum may be of, and what may become of it ----------------------------------------------------------------

template <class S>
struct ArrayElement {
  const S* x;
  __device__ __forceinline__ compute_t<S> operator()(int64_t i) const { return widen(x[i]); }
};

template <class Sum, class T>
struct StoreSum {
  T* y;
  __device__ __forceinline__ void operator()(Sum sum) const { *y = static_cast<T>(sum); }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
