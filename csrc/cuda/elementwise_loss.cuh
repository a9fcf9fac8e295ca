// Losses that compare input and target element by element: value and gradients in one pass.
#pragma once

#include "../cpu/elementwise_loss.h"
#include "../numerics/losses.h"
#include "reduce.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Element i: its gradients are written, its value returned.
template <class Loss, class S>
struct LossTerm {
  using T = compute_t<S>;
  ElementwiseLossArrays<S> p;
  MeanDivisor<T> divisor;

  __device__ __forceinline__ bool is_done() const { return holds_gradients(p); }
  __device__ __forceinline__ T operator()(int64_t i) const {
    const T x = widen(p.input[i]), y = widen(p.target[i]), pos_weight = p.pos_weight ? widen(p.pos_weight[i]) : T(1);
    auto weighted = [&](T v) { return p.weight ? mul(v, widen(p.weight[i])) : v; };
    if (p.dinput || p.dtarget) {
      const T scale = loss_scale(p.grad, p.reduction, i, divisor);
      if (p.dinput) p.dinput[i] = narrow<S>(mul(weighted(Loss::input_slope(x, y, pos_weight)), scale));
      if (p.dtarget) p.dtarget[i] = narrow<S>(mul(weighted(Loss::target_slope(x, y, pos_weight)), scale));
    }
    if (!p.value) return T(0);
    if constexpr (Loss::of_probabilities) {
      auto is_probability = [](T v) { return less_equal(T(0), v) && less_equal(v, T(1)); };
      require(is_probability(x) && is_probability(y), "binary_cross_entropy: expected input and target in [0, 1]");
    }
    return weighted(Loss::value(x, y, pos_weight));
  }
};

template <class S>
int64_t elementwise_loss_workspace(const ElementwiseLossArrays<S>& p) {
  const int64_t longest = p.count < p.mean_weight_count ? p.mean_weight_count : p.count;
  return 1 + sum_terms_workspace(longest);  // the mean's divisor, then the segments
}

// Where the loss is one of probabilities and its value is wanted, an input or a target that lies outside [0, 1] or is
// NaN stops the kernel.
template <class S>
cudaError_t elementwise_loss(const ElementwiseLossArrays<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  MeanDivisor<T> divisor{nullptr, static_cast<T>(p.count)};
  T* segments = workspace + 1;
  cudaError_t error = cudaSuccess;
  if (p.mean_weight && p.reduction == Reduction::mean) {
    divisor.computed = workspace;
    error =
        sum_terms<T>(ArrayElement<S>{p.mean_weight}, p.mean_weight_count, StoreSum<T, T>{workspace}, segments, device);
    if (error != cudaSuccess) return error;
  }
  with_elementwise_loss(p.loss, p.pos_weight != nullptr, [&](auto loss) {
    const LossTerm<decltype(loss), S> term{p, divisor};
    if (p.reduction != Reduction::none && p.value)
      error = sum_terms<T>(term, p.count, StoreLoss<S>{p.value, p.reduction, divisor}, segments, device);
    else
      error = each_term(term, p.count, p.value, device);
  });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
