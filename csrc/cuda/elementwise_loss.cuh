// Losses that compare input and target element by element: value and gradients in one pass.
#pragma once

#include "../cpu/elementwise_loss.h"
#include "../numerics/losses.h"
#include "reduce.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A group of elements: their gradients are written, their values returned.
template <class Loss, class S>
struct LossTerm {
  using T = compute_t<S>;
  static constexpr int groups = ElementGroup<S>::size;
  ElementwiseLossArrays<S> p;
  MeanDivisor<T> divisor;

  __device__ __forceinline__ bool is_done() const { return holds_gradients(p); }

  __device__ __forceinline__ Terms<T, groups> group(int64_t first, int64_t left) const {
    // Arrays of the caller's and those that torch allocates begin alike; where one does not, elements move one by one.
    const S* element_grad = p.reduction == Reduction::none ? p.grad : nullptr;
    const bool aligned = are_aligned(p.input, p.target, p.weight, p.pos_weight, element_grad, p.dinput, p.dtarget);
    const auto input = load_group(p.input + first, left, aligned), target = load_group(p.target + first, left, aligned);
    ElementGroup<S> weights, pos_weights, grads, dinput, dtarget;
    if (p.weight) weights = load_group(p.weight + first, left, aligned);
    if (p.pos_weight) pos_weights = load_group(p.pos_weight + first, left, aligned);
    if (element_grad) grads = load_group(element_grad + first, left, aligned);
    const bool has_gradient = p.dinput || p.dtarget;
    const T whole = has_gradient && !element_grad ? loss_scale(p.grad, p.reduction, 0, divisor) : T(1);
    Terms<T, groups> values;
#pragma unroll
    for (int j = 0; j < groups; j++) {
      const T x = widen(input.values[j]), y = widen(target.values[j]);
      const T pos_weight = p.pos_weight ? widen(pos_weights.values[j]) : T(1);
      const T scale = element_grad ? widen(grads.values[j]) : whole;
      auto weighted = [&](T v) { return p.weight ? mul(v, widen(weights.values[j])) : v; };
      if (p.dinput) dinput.values[j] = narrow<S>(mul(weighted(Loss::input_slope(x, y, pos_weight)), scale));
      if (p.dtarget) dtarget.values[j] = narrow<S>(mul(weighted(Loss::target_slope(x, y, pos_weight)), scale));
      values.values[j] = T(0);
      if (!p.value) continue;
      if constexpr (Loss::of_probabilities) {
        auto is_probability = [](T v) { return less_equal(T(0), v) && less_equal(v, T(1)); };
        require(is_probability(x) && is_probability(y), "binary_cross_entropy: expected input and target in [0, 1]");
      }
      values.values[j] = weighted(Loss::value(x, y, pos_weight));
    }
    if (p.dinput) store_group(p.dinput + first, dinput, left, aligned);
    if (p.dtarget) store_group(p.dtarget + first, dtarget, left, aligned);
    return values;
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
