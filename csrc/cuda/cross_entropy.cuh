// cross_entropy of class indices: loss and gradient in one pass over the logits.
//
// Everything that depends on the targets is computed on the device, the number of rows that count too:
// ClassificationLoss::counted_rows is not read. Targets out of range stop the kernel.
#pragma once

#include "../cpu/cross_entropy.h"
#include "reduce.cuh"
#include "softmax_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// What the mean divides by, and the sum of the class weights; in device memory, each written where it is wanted.
template <class T>
struct ClassTotals {
  T *divisor, *weight_sum;
};

template <class S>
struct TargetCounts {  // 1 for a row that counts
  ClassificationLoss<S> p;
  __device__ __forceinline__ int64_t operator()(int64_t row) const { return p.indices[row] != p.ignore_index; }
};

template <class S>
struct TargetWeight {  // the weight of the row's class; +0 for a row that is ignored
  ClassificationLoss<S> p;
  __device__ __forceinline__ compute_t<S> operator()(int64_t row) const {
    const int64_t t = p.indices[row];
    if (t == p.ignore_index) return 0;
    require(t >= 0 && t < p.classes);
    return widen(p.weight[t]);
  }
};

// A row's part of the computation, by the threads of `row`.
template <class Row, class S>
struct ClassRow {
  using T = compute_t<S>;
  const ClassificationLoss<S>& p;
  const Row row;
  const int64_t target;
  T weight, total, q;  // of the target's class; the sum of the target distribution, and its value at the target

  __device__ __forceinline__ ClassRow(const ClassificationLoss<S>& p, int64_t target, const T* weight_sum)
      : p(p), row(p.classes), target(target) {
    weight = p.weight ? widen(p.weight[target]) : T(1);
    total = q = weight;
    if (p.smoothed && p.weight) {
      total = fma(p.kept, weight, mul(p.spread, *weight_sum));
      q = fma(p.kept, weight, mul(p.spread, weight));
    } else if (p.smoothed) {
      q = p.on_target;
    }
  }
  __device__ __forceinline__ T class_weight(int64_t c) const { return widen(p.weight[c]); }

  __device__ __forceinline__ T loss(const ExponentialRow<Row, S>& e) const {
    const T log_sum = log(e.sum);
    auto minus_log = [&](int64_t c) { return neg(sub(e.shifted(c), log_sum)); };
    const T value = mul(weight, minus_log(target));
    if (!p.smoothed) return value;
    const T smooth = row.template sum<T>(
        [&](int, int64_t c) { return p.weight ? mul(class_weight(c), minus_log(c)) : minus_log(c); });
    return fma(p.kept, value, mul(p.spread, smooth));
  }

  // d loss / d x at column c, from its probability.
  __device__ __forceinline__ T slope(int64_t c, T probability) const {
    if (c == target) return fma(probability, total, neg(q));
    if (!p.smoothed) return p.weight ? mul(probability, total) : probability;
    return p.weight ? fma(probability, total, neg(mul(p.spread, class_weight(c)))) : sub(probability, p.spread);
  }
};

// `losses`: the loss of every row, or null.
template <class Row, class S, class L>
__global__ void cross_entropy_kernel(ClassificationLoss<S> p, ClassTotals<compute_t<S>> totals, L* losses) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner) return;
  const int64_t o = number / p.inner, i = number % p.inner, target = p.indices[number];
  S* dx = p.dinput ? p.dinput + o * p.classes * p.inner + i : nullptr;
  const bool first_thread = std::is_same_v<Row, BlockRow> ? threadIdx.x == 0 : threadIdx.x % WARP == 0;
  if (target == p.ignore_index) {
    if (dx) Row(p.classes).each([&](int, int64_t c) { dx[c * p.inner] = narrow<S>(T(0)); });
    if (losses && first_thread) losses[number] = narrow<L>(T(0));
    return;
  }
  require(target >= 0 && target < p.classes);
  const ClassRow<Row, S> row(p, target, totals.weight_sum);
  const ExponentialRow<Row, S> e(row.row, p.input + o * p.input_outer + i, dx, p.inner);
  if (losses) {
    const T loss = row.loss(e);
    if (first_thread) losses[number] = narrow<L>(loss);
  }
  if (!dx) return;
  T scale = p.grad ? widen(p.grad[p.reduction == Reduction::none ? number : 0]) : T(1);
  if (p.reduction == Reduction::mean) scale = div(scale, *totals.divisor);
  const T inverse = div(T(1), e.sum);
  row.row.each([&](int j, int64_t c) {
    dx[c * p.inner] = narrow<S>(mul(row.slope(c, mul(e.exponential(j, c), inverse)), scale));
  });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class S>
struct StoreReducedLoss {
  S* loss;
  const compute_t<S>* divisor;  // null: the sum
  __device__ __forceinline__ void operator()(compute_t<S> sum) const {
    *loss = narrow<S>(divisor ? div(sum, *divisor) : sum);
  }
};

constexpr int64_t CLASS_TOTALS = 2;

// In elements of T, which begin where an int64_t may: the totals, the segments of a sum, the rows' losses.
template <class S>
int64_t cross_entropy_segments(const ClassificationLoss<S>& p) {
  const int64_t rows = p.outer * p.inner;
  return sum_terms_workspace(rows < p.classes ? p.classes : rows) * (sizeof(int64_t) / sizeof(compute_t<S>));
}
template <class S>
int64_t cross_entropy_workspace(const ClassificationLoss<S>& p) {
  return CLASS_TOTALS + cross_entropy_segments(p) + p.outer * p.inner;
}

template <class S>
cudaError_t class_totals(const ClassificationLoss<S>& p, ClassTotals<compute_t<S>> totals, compute_t<S>* segments,
                         Device device) {
  using T = compute_t<S>;
  const int64_t rows = p.outer * p.inner;
  cudaError_t error = cudaSuccess;
  if (p.reduction == Reduction::mean && p.weight)
    error = sum_terms<T>(TargetWeight<S>{p}, rows, StoreSum<T, T>{totals.divisor}, segments, device);
  else if (p.reduction == Reduction::mean)
    error = sum_terms<int64_t>(TargetCounts<S>{p}, rows, StoreSum<int64_t, T>{totals.divisor},
                               reinterpret_cast<int64_t*>(segments), device);
  if (error != cudaSuccess || !p.weight || !p.smoothed) return error;
  return sum_terms<T>(ArrayElement<S>{p.weight}, p.classes, StoreSum<T, T>{totals.weight_sum}, segments, device);
}

template <class S>
cudaError_t cross_entropy(const ClassificationLoss<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  if (!p.indices) return cudaErrorInvalidValue;  // class probabilities
  const int64_t rows = p.outer * p.inner;
  const ClassTotals<T> totals{workspace, workspace + 1};
  T *segments = workspace + CLASS_TOTALS, *losses = segments + cross_entropy_segments(p);
  cudaError_t error = class_totals(p, totals, segments, device);
  if (error != cudaSuccess) return error;
  auto launch_to = [&](auto* to) {
    using L = std::remove_pointer_t<decltype(to)>;
    return launch_rows<T>(cross_entropy_kernel<WarpRow<HELD_COLUMNS>, S, L>, cross_entropy_kernel<WarpRow<0>, S, L>,
                          cross_entropy_kernel<BlockRow, S, L>, rows, p.classes, device, p, totals, to);
  };
  if (!p.loss || p.reduction == Reduction::none) return launch_to(p.loss);
  error = launch_to(losses);
  if (error != cudaSuccess) return error;
  const T* divisor = p.reduction == Reduction::mean ? totals.divisor : nullptr;
  return sum_terms<T>(ArrayElement<T>{losses}, rows, StoreReducedLoss<S>{p.loss, divisor}, segments, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
