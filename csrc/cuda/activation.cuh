// The activations of numerics/activations.h on their own: value and gradient over an array.
#pragma once

#include "../cpu/activation.h"
#include "../numerics/activations.h"
#include "elementwise.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class Act>
struct ActivationValue {
  __device__ __forceinline__ auto group(int64_t) const {
    return [](int, auto x) { return Act::value(x); };
  }
};

template <class Act>
struct ActivationGradient {
  __device__ __forceinline__ auto group(int64_t) const {
    return [](int, auto g, auto saved) { return Act::gradient(g, saved); };
  }
};

template <class S>
cudaError_t activation(Activation kind, int64_t n, const S* x, S* y, Device device) {
  cudaError_t error = cudaSuccess;
  with_activation(kind, [&](auto act) { error = map(ActivationValue<decltype(act)>{}, n, y, device, x); });
  return error;
}

template <class S>
cudaError_t activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx, Device device) {
  cudaError_t error = cudaSuccess;
  with_activation(kind,
                  [&](auto act) { error = map(ActivationGradient<decltype(act)>{}, n, dx, device, grad, saved); });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
