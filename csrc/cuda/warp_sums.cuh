// Sums in the contract's order (order.h) on the threads of a warp: of single terms, thread t owns the lanes t and t +
// 32; of groups of neighbouring terms, two lanes that lie side by side.
#pragma once

#include "../numerics/order.h"
#include "groups.cuh"

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

// ---- groups of neighbours -------------------------------------------------------------------------------------------

template <class T, int count>
struct Terms {
  T values[count];
};

template <class S>
__device__ __forceinline__ Terms<compute_t<S>, ElementGroup<S>::size> widen(const ElementGroup<S>& group) {
  Terms<compute_t<S>, ElementGroup<S>::size> terms;
#pragma unroll
  for (int j = 0; j < ElementGroup<S>::size; j++) terms.values[j] = widen(group.values[j]);
  return terms;
}
template <class T, int count>
__device__ __forceinline__ Terms<T, count> add(const Terms<T, count>& a, const Terms<T, count>& b) {
  Terms<T, count> sums;
#pragma unroll
  for (int j = 0; j < count; j++) sums.values[j] = add(a.values[j], b.values[j]);
  return sums;
}

// Lanes of a sum whose terms a warp has in groups of 2 or 4 neighbours. Of 4, a thread and the one half a warp away
// have the same lanes in turn; they swap halves, so that each owns two lanes whole.
template <class T, int together>
struct LaneSums {
  static_assert(together == 2 || together == 4);
  T low = T(0), high = T(0);

  // By all threads; one without terms brings +0, which changes no sum, as none is -0.
  __device__ __forceinline__ void add_group(const Terms<T, together>& own) {
    if constexpr (together == 2) {
      low = add(low, own.values[0]);
      high = add(high, own.values[1]);
    } else {
      const bool upper = threadIdx.x % WARP >= WARP / 2;
      const T a = __shfl_xor_sync(ALL_LANES, upper ? own.values[0] : own.values[2], WARP / 2);
      const T b = __shfl_xor_sync(ALL_LANES, upper ? own.values[1] : own.values[3], WARP / 2);
      low = add(add(low, upper ? a : own.values[0]), upper ? own.values[2] : a);
      high = add(add(high, upper ? b : own.values[1]), upper ? own.values[3] : b);
    }
  }
  __device__ __forceinline__ T fold() {
    if constexpr (together == 2) halve(WARP / 2);
#pragma unroll
    for (int distance = WARP / 4; distance >= 1; distance /= 2) halve(distance);
    if constexpr (together == 4) halve(WARP / 2);
    return add(low, high);
  }

 private:
  __device__ __forceinline__ void halve(int distance) {
    low = add(low, __shfl_xor_sync(ALL_LANES, low, distance));
    high = add(high, __shfl_xor_sync(ALL_LANES, high, distance));
  }
};

// Sum of n <= 4096 terms by a whole warp; terms(i) gives as many as are together, and n is a multiple of that.
template <class T, int together, class TermsAt>
__device__ __forceinline__ T sum_row_segment(int64_t n, TermsAt&& terms) {
  if constexpr (together == 1) return sum_segment<T>(n, [&](int i) { return terms(i).values[0]; });
  if constexpr (together > 1) {
    const int first = threadIdx.x % WARP * together, length = static_cast<int>(n);
    LaneSums<T, together> lanes;
#pragma unroll 4
    for (int begin = 0; begin < length; begin += WARP * together) {
      Terms<T, together> own = {};
      if (begin + first < length) own = terms(begin + first);
      lanes.add_group(own);
    }
    return lanes.fold();
  }
}

template <class T, int count>
__device__ __forceinline__ T largest_of(const Terms<T, count>& terms, T most) {
#pragma unroll
  for (int k = 0; k < count; k++) most = max(most, terms.values[k]);
  return most;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
