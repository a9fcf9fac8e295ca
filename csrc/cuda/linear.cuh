// The part of linear's backward that is no product: the activation's derivative and the bias gradient, in one pass.
#pragma once

#include "../cpu/linear.h"
#include "../numerics/activations.h"
#include "columns.cuh"
#include "tensor_cores.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class Act, class S>
struct GradientTerm {
  LinearGradient<S> p;

  __device__ __forceinline__ compute_t<S> operator()(int64_t row, int64_t column) const {
    auto dz = widen(p.grad[row * p.grad_row + column * p.grad_column]);
    if constexpr (sizeof(S) == 2 && std::is_same_v<Act, Relu>) {
      if (p.mask) {
        const bool is_positive = p.mask[row * mask_words(p.columns) + column / 64] >> column % 64 & 1;
        dz = select(is_positive, dz, 0.0f);
      }
    }
    if (p.saved) dz = Act::gradient(dz, widen(p.saved[row * p.columns + column]));
    if (p.dz) p.dz[row * p.columns + column] = narrow<S>(dz);
    return dz;
  }
};

// Elements of device memory that linear_gradient() needs beside its arguments.
template <class S>
int64_t linear_gradient_workspace(const LinearGradient<S>& p) {
  return sum_columns_workspace(p.rows, p.columns);
}

template <class S>
cudaError_t linear_gradient(const LinearGradient<S>& p, compute_t<S>* workspace, Device device) {
  cudaError_t error = cudaSuccess;
  with_activation(p.activation, [&](auto act) {
    error = sum_columns<compute_t<S>>(GradientTerm<decltype(act), S>{p}, p.rows, p.columns, p.dbias, workspace, device);
  });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
