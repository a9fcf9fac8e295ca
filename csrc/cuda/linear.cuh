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
  static constexpr bool has_mask = sizeof(S) == 2 && std::is_same_v<Act, Relu>;
  struct Loaded {
    ElementGroup<S> grad, saved;
    uint64_t positive;
  };
  LinearGradient<S> p;
  bool aligned;  // so are groups of all arrays

  __device__ __forceinline__ Loaded load(int64_t row, int64_t column, int64_t left, bool aligned) const {
    Loaded loaded;
    const S* grad = p.grad + row * p.grad_row;
    if (aligned || p.grad_column == 1)
      loaded.grad = load_group(grad + column, left, aligned);
    else
#pragma unroll
      for (int j = 0; j < groups; j++) loaded.grad.values[j] = *grad;
    if (p.saved) loaded.saved = load_group(p.saved + row * p.columns + column, left, aligned);
    if constexpr (has_mask)
      if (p.mask) loaded.positive = p.mask[row * mask_words(p.columns) + column / 64] >> column % 64;
    return loaded;
  }
  // And stores them.
  __device__ __forceinline__ Terms<compute_t<S>, groups> terms(const Loaded& loaded, int64_t row, int64_t column,
                                                               int64_t left, bool aligned) const {
    auto dz = widen(loaded.grad);
    if constexpr (has_mask)
      if (p.mask)
#pragma unroll
        for (int j = 0; j < groups; j++) dz.values[j] = select((loaded.positive >> j & 1) != 0, dz.values[j], 0.0f);
    if (p.saved) {
      const auto saved = widen(loaded.saved);
#pragma unroll
      for (int j = 0; j < groups; j++) dz.values[j] = Act::gradient(dz.values[j], saved.values[j]);
    }
    if (p.dz) {
      ElementGroup<S> narrowed;
#pragma unroll
      for (int j = 0; j < groups; j++) narrowed.values[j] = narrow<S>(dz.values[j]);
      store_group(p.dz + row * p.columns + column, narrowed, left, aligned);
    }
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
    using Term = GradientTerm<decltype(act), S>;
    const bool aligned =
        are_aligned(p.grad, p.saved, p.dz) && p.grad_column == 1 && (p.grad_row | p.columns) % Term::groups == 0;
    error = sum_columns<compute_t<S>>(Term{p, aligned}, p.rows, p.columns, p.dbias, workspace, device);
  });
  return error;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
