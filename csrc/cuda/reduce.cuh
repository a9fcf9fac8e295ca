// Sums of whole arrays by the sum rule (order.h): a block per segment, level after level.
#pragma once

#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int SEGMENT_THREADS = 256;

// A term of a sum is a function of i, asked for every i once, by one thread; or one that gives a group of terms at
// once, term.group(first, left), which has a member `groups`: the Terms of as many elements.
template <class Term, class = void>
struct TermsTogether {
  static constexpr int count = 1;
};
template <class Term>
struct TermsTogether<Term, std::void_t<decltype(Term::groups)>> {
  static constexpr int count = Term::groups;
};

// Terms `first` to `first` + count - 1, of which `left` exist.
template <class T, class Term>
__device__ __forceinline__ auto terms_at(const Term& term, int64_t first, int64_t left) {
  if constexpr (TermsTogether<Term>::count > 1)
    return term.group(first, left);
  else
    return Terms<T, 1>{{term(first)}};
}

// Blocks on a multiprocessor: with more ptxas spills registers.
template <class T, class Term>
constexpr int blocks_of_terms = TermsTogether<Term>::count * sizeof(T) > 16 ? 2 : 3;

// Sum of the n <= 4096 terms from `begin` on by a block, on the threads of its first warp: all threads compute terms,
// since a lane's chain of 64 adds leaves only one warp with work.
template <class T, class Term>
__device__ __forceinline__ T sum_segment_of_block(const Term& term, int64_t begin, int64_t n) {
  constexpr int together = TermsTogether<Term>::count;
  __shared__ __align__(16) T terms[SUM_SEGMENT];
  for (int i = threadIdx.x * together; i < n; i += SEGMENT_THREADS * together) {
    const auto some = terms_at<T>(term, begin + i, n - i);
#pragma unroll
    for (int j = 0; j < together; j++) terms[i + j] = some.values[j];  // those beyond n are never read
  }
  __syncthreads();
  return threadIdx.x < WARP ? sum_segment<T>(n, [&](int i) { return terms[i]; }) : T(0);
}

// The sum of each block's segment of the terms: into `segments`, or to finish(sum) where it is the only one.
template <class T, class Term, class Finish>
__global__ void __launch_bounds__(SEGMENT_THREADS, blocks_of_terms<T, Term>)
    sum_terms_kernel(Term term, int64_t n, T* segments, Finish finish) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * SUM_SEGMENT;
  const T sum = sum_segment_of_block<T>(term, begin, smaller<int64_t>(n - begin, SUM_SEGMENT));
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1)
    finish(sum);
  else
    segments[blockIdx.x] = sum;
}

// Elements of device memory that sum_terms() needs.
inline int64_t sum_terms_workspace(int64_t n) { return segment_sums(n); }

// Calls finish on the device with the sum of term(i) over i < n.
template <class T, class Term, class Finish>
cudaError_t sum_terms(Term term, int64_t n, Finish finish, T* workspace, Device device) {
  const int64_t segments = segments_of(n);
  const cudaError_t error =
      launch(sum_terms_kernel<T, Term, Finish>, segments, SEGMENT_THREADS, 0, device, term, n, workspace, finish);
  if (error != cudaSuccess || segments == 1) return error;
  return sum_terms<T>(SegmentSum<T>{workspace}, segments, finish, workspace + segments, device);
}

// Without a sum: term(i) for every i < n, into `values` where they are wanted; nothing where term.is_done(). (For more
// blocks on a multiprocessor ptxas spills registers.)
template <class S, class Term>
__global__ void __launch_bounds__(SEGMENT_THREADS, sizeof(S) == 4 ? 4 : 1)
    each_term_kernel(Term term, int64_t n, S* values) {
  if (term.is_done()) return;
  constexpr int together = TermsTogether<Term>::count;
  for (int64_t i = global_thread() * together; i < n; i += global_threads() * together) {
    const auto some = terms_at<compute_t<S>>(term, i, n - i);
    if (!values) continue;
    if constexpr (together > 1) {
      ElementGroup<S> group;
#pragma unroll
      for (int j = 0; j < together; j++) group.values[j] = narrow<S>(some.values[j]);
      store_group(values + i, group, n - i, are_aligned(values));
    } else {
      values[i] = narrow<S>(some.values[0]);
    }
  }
}

template <class S, class Term>
cudaError_t each_term(Term term, int64_t n, S* values, Device device) {
  const int64_t most = int64_t(64) * device.multiprocessors, in_block = SEGMENT_THREADS * TermsTogether<Term>::count;
  return launch(each_term_kernel<S, Term>, smaller(ceil_div(n, in_block), most), SEGMENT_THREADS, 0, device, term, n,
                values);
}

// ---- what a sum may be of, and what may become of it ----------------------------------------------------------------

template <class S>
struct ArrayElement {
  static constexpr int groups = ElementGroup<S>::size;
  const S* x;
  __device__ __forceinline__ auto group(int64_t first, int64_t left) const {
    return widen(load_group(x + first, left, are_aligned(x)));
  }
};

template <class Sum, class T>
struct StoreSum {
  T* y;
  __device__ __forceinline__ void operator()(Sum sum) const { *y = static_cast<T>(sum); }
};

// What a mean divides by: a number in device memory, or where that is null one that the host knows.
template <class T>
struct MeanDivisor {
  const T* computed;
  T known;
  __device__ __forceinline__ T operator()() const { return computed ? *computed : known; }
};

// A loss over all elements: their sum, or their mean.
template <class S>
struct StoreLoss {
  S* loss;
  Reduction reduction;
  MeanDivisor<compute_t<S>> divisor;
  __device__ __forceinline__ void operator()(compute_t<S> sum) const {
    *loss = narrow<S>(reduction == Reduction::mean ? div(sum, divisor()) : sum);
  }
};

// The factor of element i's gradient. `grad`: one number, with Reduction::none one per element; null: 1.
template <class S>
__device__ __forceinline__ compute_t<S> loss_scale(const S* grad, Reduction reduction, int64_t i,
                                                   MeanDivisor<compute_t<S>> divisor) {
  using T = compute_t<S>;
  const T scale = grad ? widen(grad[reduction == Reduction::none ? i : 0]) : T(1);
  return reduction == Reduction::mean ? div(scale, divisor()) : scale;
}

// Whether a loss's arguments ask for gradients that its forward pass has left where they belong.
template <class Loss>
__device__ __forceinline__ bool holds_gradients(const Loss& p) {
  return p.in_advance && equal(widen(*p.grad), 1);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
