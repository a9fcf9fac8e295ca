// Losses that compare input and target element by element: value and gradients in one pass.
#pragma once

#include "../cpu/elementwise_loss.h"
#include "../numerics/losses.h"
#include "reduce.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Element i: its gradients are written, its value returned. `divisor`: null where the mean divides by the count.
template <class Loss, class S>
struct LossTerm {
  using T = compute_t<S>;
  ElementwiseLossArrays<S> p;
  const T* divisor;

  __device__ __forceinline__ T mean_divisor() const { return divisor ? *divisor : static_cast<T>(p.count); }
  __device__ __forceinline__ T scale(int64_t i) const {
    T s = p.grad ? widen(p.grad[p.reduction == Reduction::none ? i : 0]) : T(1);
    return p.reduction == Reduction::mean ? div(s, mean_divisor()) : s;
  }
  __device__ __forceinline__ T operator()(int64_t i) const {
    const T x = widen(p.input[i]), y = widen(p.target[i]), pos_weight = p.pos_weight ? widen(p.pos_weight[i]) : T(1);
    auto weighted = [&](T v) { return p.weight ? mul(v, widen(p.weight[i])) : v; };
    if (p.dinput) p.dinput[i] = narrow<S>(mul(weighted(Loss::input_slope(x, y, pos_weight)), scale(i)));
    if (p.dtarget) p.dtarget[i] = narrow<S>(mul(weighted(Loss::target_slope(x, y, pos_weight)), scale(i)));
    return p.value ? weighted(Loss::value(x, y, pos_weight)) : T(0);
  }
};

template <class Loss, class S>
struct StoreLoss {
  LossTerm<Loss, S> term;
  __device__ __forceinline__ void operator()(compute_t<S> sum) const {
    *term.p.value = narrow<S>(term.p.reduction == Reduction::mean ? div(sum, term.mean_divisor()) : sum);
  }
};

// Without a sum: the values, where wanted, are results of their own.
template <class Loss, class S>
__global__ void __launch_bounds__(SEGMENT_THREADS) loss_elements_kernel(LossTerm<Loss, S> term) {
  for (int64_t i = global_thread(); i < term.p.count; i += global_threads()) {
    const auto value = term(i);
    if (term.p.value) term.p.value[i] = narrow<S>(value);
  }
}

template <class S>
int64_t elementwise_loss_workspace(const ElementwiseLossArrays<S>& p) {
  const int64_t longest = p.count < p.mean_weight_count ? p.mean_weight_count : p.count;
  return 1 + sum_terms_workspace(longest);  // the mean's divisor, then the segments
}

template <class Loss, class S>
cudaError_t elementwise_loss_of(const ElementwiseLossArrays<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  T *divisor = nullptr, *segments = workspace + 1;
  cudaError_t error = cudaSuccess;
  if (p.mean_weight && p.reduction == Reduction::mean) {
    divisor = workspace;
    error =
        sum_terms<T>(ArrayElement<S>{p.mean_weight}, p.mean_weight_count, StoreSum<T, T>{divisor}, segments, device);
    if (error != cudaSuccess) return error;
  }
  const LossTerm<Loss, S> term{p, divisor};
  if (p.reduction != Reduction::none && p.value)
    return sum_terms<T>(term, p.count, StoreLoss<Loss, S>{term}, segments, device);
  const int64_t most = int64_t(64) * device.multiprocessors;
  return launch(loss_elements_kernel<Loss, S>, smaller(ceil_div(p.count, SEGMENT_THREADS), most), SEGMENT_THREADS, 0,
                device, term);
}

// mse_loss and binary_cross_entropy_with_logits; cudaErrorInvalidValue for the loss of probabilities.
template <class S>
cudaError_t elementwise_loss(const ElementwiseLossArrays<S>& p, compute_t<S>* workspace, Device device) {
  cudaError_t error = cudaErrorInvalidValue;
  with_elementwise_loss(p.loss, p.pos_weight != nullptr, [&](auto loss) {
    using Loss = decltype(loss);
    if constexpr (!Loss::of_probabilities) error = elementwise_loss_of<Loss>(p, workspace, device);
  });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
