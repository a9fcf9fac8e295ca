// cross_entropy of class indices or class probabilities: loss and gradients in one pass over the logits.
//
// Everything that depends on the targets is computed on the device, the number of rows that count too:
// ClassificationLoss::counted_rows is not read. Class indices out of range stop the kernel.
#pragma once

#include "../cpu/cross_entropy.h"
#include "reduce.cuh"
#include "softmax_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

#define PYTORCH_EXT_CLASS_INDICES "expected class indices in [0, classes) or ignore_index"

// What all rows have in common. `weight_sum`, of the class weights, is in device memory; null where it is not wanted.
template <class T>
struct ClassTotals {
  MeanDivisor<T> divisor;
  const T* weight_sum;
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
    require(t >= 0 && t < p.classes, PYTORCH_EXT_CLASS_INDICES);
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
      : p(p), row(p.classes, p.inner), target(target) {
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
    auto minus_log = [&](T x) { return neg(sub(e.shifted(x), log_sum)); };
    const T value = mul(weight, minus_log(widen(e.x[target * p.inner])));
    if (!p.smoothed) return value;
    const T smooth = row.template sum<T>(
        [&](int, int64_t c, T x) { return p.weight ? mul(class_weight(c), minus_log(x)) : minus_log(x); }, e.x);
    return fma(p.kept, value, mul(p.spread, smooth));
  }

  // d loss / d x at column c, from its probability.
  __device__ __forceinline__ T slope(int64_t c, T probability) const {
    if (c == target) return fma(probability, total, neg(q));
    if (!p.smoothed) return p.weight ? mul(probability, total) : probability;
    return p.weight ? fma(probability, total, neg(mul(p.spread, class_weight(c)))) : sub(probability, p.spread);
  }
};

// Where the loss of every row goes, if anywhere: to the caller, or to be summed.
template <class S>
struct RowLosses {
  S* wanted;
  compute_t<S>* summed;
  __device__ __forceinline__ bool any() const { return wanted || summed; }
  __device__ __forceinline__ void store(int64_t row, compute_t<S> loss) const {
    if (wanted)
      wanted[row] = narrow<S>(loss);
    else
      summed[row] = loss;
  }
};

// Row `number`, by its threads.
template <class Row, class S>
__device__ __forceinline__ void class_indices_row(const ClassificationLoss<S>& p,
                                                  const ClassTotals<compute_t<S>>& totals, int64_t number,
                                                  RowLosses<S> losses) {
  using T = compute_t<S>;
  const int64_t o = number / p.inner, i = number % p.inner, target = p.indices[number];
  S* dx = p.dinput ? p.dinput + o * p.classes * p.inner + i : nullptr;
  if (target == p.ignore_index) {
    if (dx) Row(p.classes, p.inner).store(dx, [](int, int64_t) { return T(0); });
    if (losses.any() && is_first_of_row<Row>()) losses.store(number, T(0));
    return;
  }
  require(target >= 0 && target < p.classes, PYTORCH_EXT_CLASS_INDICES);
  const ClassRow<Row, S> row(p, target, totals.weight_sum);
  const ExponentialRow<Row, S> e(row.row, p.input + o * p.input_outer + i, dx, /*keeps_shifted=*/false);
  if (losses.any()) {
    const T loss = row.loss(e);
    if (is_first_of_row<Row>()) losses.store(number, loss);
  }
  if (!dx) return;
  const T scale = loss_scale(p.grad, p.reduction, number, totals.divisor), inverse = div(T(1), e.sum);
  e.store(dx, [&](int64_t c, T exponential) { return mul(row.slope(c, mul(exponential, inverse)), scale); });
}

template <class Row, class S>
__global__ void __launch_bounds__(Row::block_threads, Row::blocks)
    class_indices_kernel(ClassificationLoss<S> p, ClassTotals<compute_t<S>> totals, RowLosses<S> losses) {
  const int64_t number = own_row<Row>();
  if (number < p.outer * p.inner && !holds_gradients(p)) class_indices_row<Row>(p, totals, number, losses);
}

template <class Row, class S>
__global__ void __launch_bounds__(Row::block_threads, Row::blocks)
    class_probabilities_kernel(ClassificationLoss<S> p, ClassTotals<compute_t<S>> totals, RowLosses<S> losses) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner || holds_gradients(p)) return;
  const int64_t o = number / p.inner, i = number % p.inner, first = o * p.classes * p.inner + i;
  const Row row(p.classes, p.inner);
  S* dx = p.dinput ? p.dinput + first : nullptr;
  const S* target = p.probabilities + first;
  const ExponentialRow<Row, S> e(row, p.input + o * p.input_outer + i, dx, /*keeps_shifted=*/false);
  const T log_sum = log(e.sum), scale = loss_scale(p.grad, p.reduction, number, totals.divisor);
  auto weighted = [&](int64_t c, T v) { return p.weight ? mul(widen(p.weight[c]), v) : v; };
  auto minus_log = [&](T x) { return neg(sub(e.shifted(x), log_sum)); };
  auto q = [&](int64_t c, T t) { return weighted(c, p.smoothed ? fma(t, p.kept, p.spread) : t); };
  if (losses.any()) {
    const T loss =
        row.template sum<T>([&](int, int64_t c, T x, T t) { return mul(q(c, t), minus_log(x)); }, e.x, target);
    if (is_first_of_row<Row>()) losses.store(number, loss);
  }
  if (p.dprobabilities)
    row.store(
        p.dprobabilities + first,
        [&](int, int64_t c, T x) {
          const T slope = weighted(c, minus_log(x));
          return mul(p.smoothed ? mul(slope, p.kept) : slope, scale);
        },
        e.x);
  if (!dx) return;
  const T total = row.template sum<T>([&](int, int64_t c, T t) { return q(c, t); }, target), inverse = div(T(1), e.sum);
  e.store(
      dx,
      [&](int64_t c, T exponential, T t) { return mul(fma(mul(exponential, inverse), total, neg(q(c, t))), scale); },
      target);
}

// ---- launchers ------------------------------------------------------------------------------------------------------

constexpr int64_t CLASS_TOTALS = 2;

// In elements of T, which begin where an int64_t may: the totals, the segments of a sum, the rows' losses.
template <class S>
int64_t class_segments(const ClassificationLoss<S>& p) {
  const int64_t rows = p.outer * p.inner;
  return sum_terms_workspace(rows < p.classes ? p.classes : rows) * (sizeof(int64_t) / sizeof(compute_t<S>));
}
template <class S>
int64_t cross_entropy_workspace(const ClassificationLoss<S>& p) {
  return CLASS_TOTALS + class_segments(p) + p.outer * p.inner;
}

// The totals of class indices, in `workspace`; of class probabilities the divisor is known.
template <class S>
cudaError_t class_totals(const ClassificationLoss<S>& p, ClassTotals<compute_t<S>>& totals, compute_t<S>* workspace,
                         Device device) {
  using T = compute_t<S>;
  const int64_t rows = p.outer * p.inner;
  T *divisor = workspace, *weight_sum = workspace + 1, *segments = workspace + CLASS_TOTALS;
  totals = {{nullptr, static_cast<T>(rows)}, nullptr};
  if (!p.indices) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  if (p.reduction == Reduction::mean) {
    totals.divisor.computed = divisor;
    if (p.weight)
      error = sum_terms<T>(TargetWeight<S>{p}, rows, StoreSum<T, T>{divisor}, segments, device);
    else
      error = sum_terms<int64_t>(TargetCounts<S>{p}, rows, StoreSum<int64_t, T>{divisor},
                                 reinterpret_cast<int64_t*>(segments), device);
  }
  if (error != cudaSuccess || !p.weight || !p.smoothed) return error;
  totals.weight_sum = weight_sum;
  return sum_terms<T>(ArrayElement<S>{p.weight}, p.classes, StoreSum<T, T>{weight_sum}, segments, device);
}

template <class S>
cudaError_t cross_entropy(const ClassificationLoss<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  const int64_t rows = p.outer * p.inner;
  ClassTotals<T> totals;
  cudaError_t error = class_totals(p, totals, workspace, device);
  if (error != cudaSuccess) return error;
  const RowLayout layout =
      row_layout<S>(p.classes, p.inner, p.input_outer, p.input, p.probabilities, p.dinput, p.dprobabilities);
  auto launch_to = [&](const RowLosses<S>& losses) {
    return with_rows<S>(rows, p.classes, layout, 1, device, [&](const RowGrid& grid, auto* row) {
      using Row = std::remove_pointer_t<decltype(row)>;
      return launch(p.indices ? class_indices_kernel<Row, S> : class_probabilities_kernel<Row, S>, grid, device, p,
                    totals, losses);
    });
  };
  if (!p.loss || p.reduction == Reduction::none) return launch_to({p.loss, nullptr});
  T *segments = workspace + CLASS_TOTALS, *losses = segments + class_segments(p);
  error = launch_to({nullptr, losses});
  if (error != cudaSuccess) return error;
  return sum_terms<T>(ArrayElement<T>{losses}, rows, StoreLoss<S>{p.loss, p.reduction, totals.divisor}, segments,
                      device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
