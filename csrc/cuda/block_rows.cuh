// Rows on the threads of a block each.
#pragma once

#include "warp_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A block whose row leaves room for less than three on a multiprocessor has more threads, but in float64, whose
// functions would not fit the registers.
constexpr int BLOCK_ROW_THREADS = 256, MOST_BLOCK_ROW_THREADS = 512;
constexpr int MOST_BLOCK_ROW_WARPS = MOST_BLOCK_ROW_THREADS / WARP;
constexpr int64_t SHARED_BYTES_OF_SEVERAL = 72 << 10;  // three blocks on a multiprocessor of sm_90, two of sm_80

INLINE_HD int64_t segments_of(int64_t elements) { return elements > SUM_SEGMENT ? ceil_div(elements, SUM_SEGMENT) : 1; }

// The columns of a row that a block has: from `first` on up to `end`. `first` begins a segment of the row's sums.
template <int Together, bool Contiguous>
struct BlockColumns : RowMemory<Together, Contiguous> {
  static constexpr int held = 0, block_threads = Together == 2 ? BLOCK_ROW_THREADS : MOST_BLOCK_ROW_THREADS;
  static constexpr bool of_block = true;
  static constexpr int blocks = 1;
  int64_t first, end;

  __device__ __forceinline__ BlockColumns(int64_t inner, int64_t first, int64_t end)
      : RowMemory<Together, Contiguous>{inner}, first(first), end(end) {}
  template <class F>
  __device__ __forceinline__ void each_group(F&& f) const {
#pragma unroll 4
    for (int64_t c = first + threadIdx.x * Together; c < end; c += blockDim.x * Together) f(c);
  }
  static __device__ __forceinline__ int warps() { return blockDim.x / WARP; }
  // What is staged becomes f(j, c, x[c]...).
  template <class T, class F, class... X>
  __device__ __forceinline__ void stage_terms(T* stage, F&& f, const X*... x) const {
    each_group([&](int64_t c) { this->template put<true>(stage, c, this->template terms<T>(0, c, f, x...)); });
  }
  // Begins to stage an array: a thread has its own columns after wait_for_copies().
  template <class T, class S>
  __device__ __forceinline__ void begin_staging(T* stage, const S* x) const {
    if constexpr (std::is_same_v<T, S>)
      each_group([&](int64_t c) { begin_copy<sizeof(S) * Together>(stage + c, x + c); });
    else
      stage_terms(stage, [](int, int64_t, T v) { return v; }, x);
  }
  template <class S, class F, class... X>
  __device__ __forceinline__ void store(S* y, F&& f, const X*... x) const {
    each_group([&](int64_t c) { this->put(y, c, this->template terms<compute_t<S>>(0, c, f, x...)); });
  }
  // Of the block's columns that a warp has: known to all its threads.
  template <class T, class F, class... X>
  __device__ __forceinline__ T largest_of_own(F&& f, const X*... x) const {
    T most = -static_cast<T>(POSITIVE_INFINITY);
    each_group([&](int64_t c) { most = largest_of(this->template terms<T>(0, c, f, x...), most); });
    return largest_of_warp(most);
  }
  // The sum of the segment that begins at that column, by a warp; y[c] becomes the terms, where y is not null.
  template <class T, class S, class F, class... X>
  __device__ __forceinline__ T sum_segment_into(S* y, int64_t begin, F& f, const X*... x) const {
    return sum_row_segment<T, Together>(smaller<int64_t>(end - begin, SUM_SEGMENT), [&](int i) {
      const auto terms = this->template terms<T>(0, begin + i, f, x...);
      if (y) this->put(y, begin + i, terms);
      return terms;
    });
  }
};

// A block for a row of any length, a warp for each of its segments. Dynamic shared memory, of block_row_bytes(), holds
// the sums of segments, as many as are a segment themselves, and the sums of those groups; then what is staged. The
// largest elements of warps are where the sums are.

// How many sums of segments that are, rounded up so that what follows begins at a multiple of 16 bytes.
INLINE_HD int64_t block_row_sums(int64_t columns) {
  const int64_t segments = segments_of(columns);
  const int64_t sums = segments_of(segments) + smaller<int64_t>(segments, SUM_SEGMENT);
  return larger<int64_t>(ceil_div(sums, 4) * 4, MOST_BLOCK_ROW_WARPS);
}
template <class T>
int64_t block_row_bytes(int64_t columns, int staged_arrays) {
  return (block_row_sums(columns) + staged_arrays * columns) * static_cast<int64_t>(sizeof(T));
}

template <int Together, bool Staged>
struct BlockRow : BlockColumns<Together, (Staged || Together > 1)> {
  static constexpr bool staged = Staged;

  __device__ __forceinline__ BlockRow(int64_t columns, int64_t inner)
      : BlockColumns<Together, (Staged || Together > 1)>(inner, 0, columns) {}
  template <class T>
  __device__ __forceinline__ T* stage(int array) const {
    return dynamic_shared<T>() + block_row_sums(this->end) + array * this->end;
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T largest(F&& f, const X*... x) const {
    T* of_warp = dynamic_shared<T>();
    const T own = this->template largest_of_own<T>(f, x...);
    __syncthreads();  // what is there was read in an earlier call
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = own;
    __syncthreads();
    T most = of_warp[0];
    for (int w = 1; w < this->warps(); w++) most = max(most, of_warp[w]);
    return most;
  }
  template <class T, class S, class F, class... X>
  __device__ __forceinline__ T sum_into(S* y, F&& f, const X*... x) const {
    const int64_t segments = ceil_div(this->end, SUM_SEGMENT), groups = segments_of(segments);
    T *of_groups = dynamic_shared<T>(), *of_segments = of_groups + groups;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * SUM_SEGMENT, count = smaller<int64_t>(segments - first, SUM_SEGMENT);
      __syncthreads();  // the sums of an earlier call or group were read
      for (int64_t s = threadIdx.x / WARP; s < count; s += this->warps()) {
        const T sum = this->template sum_segment_into<T>(y, (first + s) * SUM_SEGMENT, f, x...);
        if (threadIdx.x % WARP == 0) of_segments[s] = sum;
      }
      __syncthreads();
      if (threadIdx.x >= WARP) continue;
      const T sum = sum_segment<T>(count, [&](int s) { return of_segments[s]; });
      if (threadIdx.x == 0) of_groups[g] = sum;
    }
    __syncthreads();
    if (threadIdx.x < WARP) sum_array_in_place(groups, of_groups);
    __syncthreads();
    return *of_groups;
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T sum(F&& f, const X*... x) const {
    return sum_into<T>(static_cast<T*>(nullptr), f, x...);
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
