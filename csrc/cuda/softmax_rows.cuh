// The first half of a softmax for one row: the largest element, the exponentials and their sum.
#pragma once

#include "../numerics/functions.h"
#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// x points to the row's first element; its columns are `inner` apart. The exponentials are kept in registers where the
// row is held; else in `stage`, laid out as x; where that is null or too narrow they are computed again.
template <class Row, class S, class T = compute_t<S>>
struct ExponentialRow {
  static constexpr bool in_registers = Row::held > 0, in_stage = !in_registers && sizeof(S) == sizeof(T);
  const S* x;
  S* stage;
  int64_t inner;
  T max, sum;
  T held[in_registers ? Row::held : 1];

  __device__ __forceinline__ ExponentialRow(const Row& row, const S* x, S* stage, int64_t inner)
      : x(x), stage(stage), inner(inner) {
    max = add(row.template largest<T>([&](int j, int64_t c) {
      const T v = element(c);
      if constexpr (in_registers) held[j] = v;
      return v;
    }),
              T(0));
    sum = row.template sum<T>([&](int j, int64_t c) {
      T e;
      if constexpr (in_registers)
        e = held[j] = exp_nonpositive(minus_max(held[j]));
      else
        e = exp_nonpositive(shifted(c));
      if constexpr (in_stage)
        if (this->stage) this->stage[c * this->inner] = e;
      return e;
    });
  }
  __device__ __forceinline__ T element(int64_t c) const { return widen(x[c * inner]); }
  __device__ __forceinline__ T minus_max(T v) const { return sub(v, max); }
  __device__ __forceinline__ T shifted(int64_t c) const { return minus_max(element(c)); }
  __device__ __forceinline__ T exponential(int j, int64_t c) const {
    if constexpr (in_registers) return held[j];
    if constexpr (in_stage)
      if (stage) return widen(stage[c * inner]);
    return exp_nonpositive(shifted(c));
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
