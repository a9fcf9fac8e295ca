// Rows and sums in the contract's order (order.h) on the threads of a warp or a block. Thread t of a warp owns the
// lanes t and t + 32 of a sum.
#pragma once

#include "../numerics/order.h"
#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

static_assert(SUM_LANES == 2 * WARP);

INLINE_HD int64_t add(int64_t a, int64_t b) { return a + b; }  // counts

// How many sums of segments come before the sum of so many elements: those of every level.
inline int64_t segment_sums(int64_t elements) {
  int64_t count = 0;
  while (elements > SUM_SEGMENT) {
    elements = ceil_div(elements, SUM_SEGMENT);
    count += elements;
  }
  return count;
}

template <class T>
struct SegmentSum {  // the s-th of a level, as a term of the next one
  const T* sums;
  __device__ __forceinline__ T operator()(int64_t s) const { return sums[s]; }
};

// What the 32 lower lanes hold becomes the sum of all, on every thread.
template <class T>
__device__ __forceinline__ T fold_lanes(T low, T high) {
  T sum = add(low, high);
#pragma unroll
  for (int width = WARP / 2; width >= 1; width /= 2) sum = add(sum, __shfl_xor_sync(ALL_LANES, sum, width));
  return sum;
}

// Sum of n <= 4096 terms by a whole warp; term(i) is asked for every i < n once, by one thread.
template <class T, class Term>
__device__ __forceinline__ T sum_segment(int64_t n, Term&& term) {
  const int t = threadIdx.x % WARP, length = static_cast<int>(n);
  T low = T(0), high = T(0);
  int i = t;
#pragma unroll 4
  for (; i + WARP < length; i += SUM_LANES) {
    low = add(low, term(i));
    high = add(high, term(i + WARP));
  }
  if (i < length) low = add(low, term(i));
  return fold_lanes(low, high);
}

// Sum of segment results, in place, by one warp: `count` of them become one.
template <class T>
__device__ __forceinline__ T sum_array_in_place(int64_t count, T* x) {
  while (count > 1) {
    const int64_t segments = ceil_div(count, SUM_SEGMENT);
    for (int64_t s = 0; s < segments; s++) {
      const T* segment = x + s * SUM_SEGMENT;
      const T sum =
          sum_segment<T>(smaller<int64_t>(count - s * SUM_SEGMENT, SUM_SEGMENT), [=](int i) { return segment[i]; });
      if (threadIdx.x % WARP == 0) x[s] = sum;  // x[s] was read before: in this segment or in an earlier one
      __syncwarp();
    }
    count = segments;
  }
  return *x;
}

template <class T>
__device__ __forceinline__ T largest_of_warp(T x) {
#pragma unroll
  for (int width = WARP / 2; width >= 1; width /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, width));
  return x;
}

// ---- a row's threads ------------------------------------------------------------------------------------------------
//
//   each(f), largest(f), sum(f)
//       over the columns: f(j, c) is called for column c by the thread that has it; the results of largest and sum are
//       known to all threads
//   held
//       how many columns a thread has at most, where it may keep them in registers: column c is then its j-th in every
//       call, and j a constant; else 0

constexpr int ROWS_PER_BLOCK = 4, BLOCK_ROW_THREADS = 256, HELD_COLUMNS = 32;
constexpr int64_t HELD_ROW = HELD_COLUMNS * WARP;

// A warp for a row of at most 4096 columns, or of HELD_ROW if they are held.
template <int Held>
struct WarpRow {
  static constexpr int held = Held;
  int columns;

  explicit __device__ __forceinline__ WarpRow(int64_t columns) : columns(static_cast<int>(columns)) {}
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    const int t = threadIdx.x % WARP;
    if constexpr (Held > 0) {
#pragma unroll
      for (int j = 0; j < Held; j++)
        if (t + j * WARP < columns) f(j, t + j * WARP);
    } else {
#pragma unroll 4
      for (int c = t; c < columns; c += WARP) f(0, c);
    }
  }
  template <class T, class Term>
  __device__ __forceinline__ T largest(Term&& term) const {
    T most = -static_cast<T>(POSITIVE_INFINITY);
    each([&](int j, int c) { most = max(most, term(j, c)); });
    return largest_of_warp(most);
  }
  template <class T, class Term>
  __device__ __forceinline__ T sum(Term&& term) const {
    if constexpr (Held > 0) {
      T low = T(0), high = T(0);
      each([&](int j, int c) {
        T& lane = j % 2 ? high : low;
        lane = add(lane, term(j, c));
      });
      return fold_lanes(low, high);
    } else {
      return sum_segment<T>(columns, [&](int c) { return term(0, c); });
    }
  }
};

// A block for a row of more than 4096 columns, a warp for each of its segments. Dynamic shared memory, of
// block_row_bytes(), holds the sums of segments: as many as are a segment themselves, and the sums of those groups.
constexpr int64_t MOST_SHARED_BYTES = 48 << 10;

INLINE_HD int64_t segments_of(int64_t elements) { return elements > SUM_SEGMENT ? ceil_div(elements, SUM_SEGMENT) : 1; }
template <class T>
int64_t block_row_bytes(int64_t columns) {
  const int64_t segments = segments_of(columns);
  return (segments_of(segments) + smaller<int64_t>(segments, SUM_SEGMENT)) * sizeof(T);
}

struct BlockRow {
  static constexpr int held = 0;
  static constexpr int warps = BLOCK_ROW_THREADS / WARP;
  int64_t columns;

  explicit __device__ __forceinline__ BlockRow(int64_t columns) : columns(columns) {}
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll 4
    for (int64_t c = threadIdx.x; c < columns; c += BLOCK_ROW_THREADS) f(0, c);
  }
  template <class T, class Term>
  __device__ __forceinline__ T largest(Term&& term) const {
    __shared__ T of_warp[warps];
    T most = -static_cast<T>(POSITIVE_INFINITY);
    each([&](int j, int64_t c) { most = max(most, term(j, c)); });
    most = largest_of_warp(most);
    __syncthreads();  // of_warp was read in an earlier call
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = most;
    __syncthreads();
    most = of_warp[0];
#pragma unroll
    for (int w = 1; w < warps; w++) most = max(most, of_warp[w]);
    return most;
  }
  template <class T, class Term>
  __device__ __forceinline__ T sum(Term&& term) const {
    const int64_t segments = ceil_div(columns, SUM_SEGMENT), groups = segments_of(segments);
    T *of_groups = dynamic_shared<T>(), *of_segments = of_groups + groups;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * SUM_SEGMENT, count = smaller<int64_t>(segments - first, SUM_SEGMENT);
      __syncthreads();  // the sums of an earlier call or group were read
      for (int64_t s = threadIdx.x / WARP; s < count; s += warps) {
        const int64_t begin = (first + s) * SUM_SEGMENT;
        const T sum =
            sum_segment<T>(smaller<int64_t>(columns - begin, SUM_SEGMENT), [&](int i) { return term(0, begin + i); });
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
};

// Launches kernel<Row>(arguments...) with the threads that rows of this length want. A kernel asks own_row() for its
// row.
template <class Row>
__device__ __forceinline__ int64_t own_row() {
  return std::is_same_v<Row, BlockRow> ? blockIdx.x
                                       : static_cast<int64_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
}

template <class Row>
__device__ __forceinline__ bool is_first_of_row() {
  return threadIdx.x % (std::is_same_v<Row, BlockRow> ? BLOCK_ROW_THREADS : WARP) == 0;
}

template <class T, class... Parameters, class... Arguments>
cudaError_t launch_rows(void (*held)(Parameters...), void (*warp)(Parameters...), void (*block)(Parameters...),
                        int64_t rows, int64_t columns, Device device, Arguments... arguments) {
  if (columns <= SUM_SEGMENT)
    return launch(columns <= HELD_ROW ? held : warp, ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, device,
                  arguments...);
  const int64_t shared_bytes = block_row_bytes<T>(columns);
  if (shared_bytes > MOST_SHARED_BYTES) return cudaErrorInvalidConfiguration;  // above 3e10 columns
  return launch(block, rows, BLOCK_ROW_THREADS, shared_bytes, device, arguments...);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
