// The dot product of two vectors: a sum, by the sum rule, of products.
#pragma once

#include "../cpu/reduce.h"
#include "reduce.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class S>
struct DotTerm {
  using T = compute_t<S>;
  static constexpr int groups = ElementGroup<S>::size;
  DotProduct<S> p;

  __device__ __forceinline__ Terms<T, groups> group(int64_t first, int64_t left) const {
    ElementGroup<S> x, y;
    if (p.x_stride == 1 && p.y_stride == 1) {
      const bool aligned = are_aligned(p.x, p.y);
      x = load_group(p.x + first, left, aligned), y = load_group(p.y + first, left, aligned);
    } else {
#pragma unroll
      for (int j = 0; j < groups; j++)
        if (j < left) x.values[j] = p.x[(first + j) * p.x_stride], y.values[j] = p.y[(first + j) * p.y_stride];
    }
    Terms<T, groups> terms;
#pragma unroll
    for (int j = 0; j < groups; j++) terms.values[j] = mul(widen(x.values[j]), widen(y.values[j]));
    return terms;
  }
};

template <class S>
int64_t dot_product_workspace(const DotProduct<S>& p) {
  return sum_terms_workspace(p.count);
}

template <class S>
cudaError_t dot_product(const DotProduct<S>& p, compute_t<S>* workspace, Device device) {
  using T = compute_t<S>;
  return sum_terms<T>(DotTerm<S>{p}, p.count, StoreLoss<S>{p.result, Reduction::sum, {nullptr, T(1)}}, workspace,
                      device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
