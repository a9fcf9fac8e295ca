// nll_loss of log-probabilities and class indices: loss and gradient in one pass over the rows.
#pragma once

#include "cross_entropy.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A row's gradient is written, its loss returned. Class indices out of range stop the kernel.
template <class S>
struct NllTerm {
  using T = compute_t<S>;
  ClassificationLoss<S> p;
  MeanDivisor<T> divisor;

  __device__ __forceinline__ bool is_done() const { return holds_gradients(p); }
  __device__ __forceinline__ T operator()(int64_t row) const {
    const int64_t target = p.indices[row], o = row / p.inner, i = row % p.inner;
    if (target == p.ignore_index) return T(0);
    require(target >= 0 && target < p.classes, PYTORCH_EXT_CLASS_INDICES);
    const T weight = p.weight ? widen(p.weight[target]) : T(1);
    if (p.dinput) {
      const T scale = loss_scale(p.grad, p.reduction, row, divisor);
      p.dinput[(o * p.classes + target) * p.inner + i] = narrow<S>(neg(mul(weight, scale)));
    }
    return p.loss ? mul(weight, neg(widen(p.input[o * p.input_outer + target * p.inner + i]))) : T(0);
  }
};

// In elements of T, which begin where an int64_t may.
template <class S>
int64_t nll_loss_workspace(const ClassificationLoss<S>& p) {
  return CLASS_TOTALS + class_segments(p);
}

// dinput is all +0 before: only the elements at the targets are written.
template <class S>
cudaError_t nll_loss(const ClassificationLoss<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  const int64_t rows = p.outer * p.inner;
  ClassTotals<T> totals;
  const cudaError_t error = class_totals(p, totals, workspace, device);
  if (error != cudaSuccess) return error;
  const NllTerm<S> term{p, totals.divisor};
  if (!p.loss || p.reduction == Reduction::none) return each_term(term, rows, p.loss, device);
  return sum_terms<T>(term, rows, StoreLoss<S>{p.loss, p.reduction, totals.divisor}, workspace + CLASS_TOTALS, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
