// The part of linear's backward that is no product: the activation's derivative and the bias gradient, in one pass.
#pragma once

#include "../cpu/linear.h"
#include "../numerics/activations.h"
#include "columns.cuh"
#include "tensor_cores.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class Act, class S>
struct GradientTerm {
  static constexpr int groups = ElementGroup<S>::size;
  LinearGradient<S> p;
  bool grad_aligned, aligned;  // so are groups of grad's columns; of those of saved and dz

  __device__ __forceinline__ Terms<compute_t<S>, groups> group(int64_t row, int64_t column, int64_t left) const {
    const S* grad = p.grad + row * p.grad_row;
    const int64_t at = row * p.columns + column;
    auto dz = widen(p.grad_column == 1 ? load_group(grad + column, left, grad_aligned) : repeated(*grad));
    if constexpr (sizeof(S) == 2 && std::is_same_v<Act, Relu>) {
      if (p.mask) {
        const uint64_t positive = p.mask[row * mask_words(p.columns) + column / 64] >> column % 64;
#pragma unroll
        for (int j = 0; j < groups; j++) dz.values[j] = select((positive >> j & 1) != 0, dz.values[j], 0.0f);
      }
    }
    if (p.saved) {
      const auto saved = widen(load_group(p.saved + at, left, aligned));
#pragma unroll
      for (int j = 0; j < groups; j++) dz.values[j] = Act::gradient(dz.values[j], saved.values[j]);
    }
    if (p.dz) {
      ElementGroup<S> narrowed;
#pragma unroll
      for (int j = 0; j < groups; j++) narrowed.values[j] = narrow<S>(dz.values[j]);
      store_group(p.dz + at, narrowed, left, aligned);
    }
    return dz;
  }

 private:
  static __device__ __forceinline__ ElementGroup<S> repeated(S x) {
    ElementGroup<S> group;
#pragma unroll
    for (int j = 0; j < groups; j++) group.values[j] = x;
    return group;
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
    using Term = GradientTerm<decltype(act), S>;
    const bool grad_aligned = are_aligned(p.grad) && p.grad_row % Term::groups == 0;
    const bool aligned = are_aligned(p.saved, p.dz) && p.columns % Term::groups == 0;
    error = sum_columns<compute_t<S>>(Term{p, grad_aligned, aligned}, p.rows, p.columns, p.dbias, workspace, device);
  });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
