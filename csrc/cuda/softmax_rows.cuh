// The first half of a softmax for one row: the largest element, the exponentials and their sum.
#pragma once

#include "../numerics/functions.h"
#include "rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// x points to the row's first element. The exponentials are kept in registers where the row is held, in shared memory
// where it is staged; else in `output`, laid out as x; where that is null or too narrow they are computed again.
template <class Row, class S, class T = compute_t<S>>
struct ExponentialRow {
  static constexpr bool in_registers = Row::held > 0,
                        in_output = !in_registers && !Row::staged && sizeof(S) == sizeof(T);
  const Row& row;
  const S* x;
  S* output;
  bool keeps_shifted;
  T max, sum;
  T held[in_registers ? Row::held : 1];

  // `keeps_shifted`: store_shifted() will be called, and not store().
  __device__ __forceinline__ ExponentialRow(const Row& row, const S* x, S* output, bool keeps_shifted)
      : row(row), x(x), output(output), keeps_shifted(keeps_shifted) {
    auto exponential = [&](int, int64_t, T v) { return exp_nonpositive(shifted(v)); };
    if constexpr (in_registers) {
      max = row.template largest<T>([&](int j, int64_t, T v) { return held[j] = v; }, x);
      max = add(max, T(0));
      sum = row.template sum<T>([&](int j, int64_t) {
        const T s = shifted(held[j]), e = exp_nonpositive(s);
        held[j] = this->keeps_shifted ? s : e;
        return e;
      });
    } else if constexpr (Row::staged) {
      T* stage = row.template stage<T>(0);
      auto same = [](int, int64_t, T v) { return v; };
      row.begin_staging(stage, x);
      wait_for_copies();
      max = add(row.template largest<T>(same, stage), T(0));
      row.stage_terms(
          stage, [&](int, int64_t, T v) { return this->keeps_shifted ? shifted(v) : exp_nonpositive(shifted(v)); },
          stage);
      sum = row.template sum<T>([&](int, int64_t, T v) { return this->keeps_shifted ? exp_nonpositive(v) : v; }, stage);
    } else {
      max = add(row.template largest<T>([](int, int64_t, T v) { return v; }, x), T(0));
      if constexpr (in_output)
        sum = row.template sum_into<T>(output, exponential, x);
      else
        sum = row.template sum<T>(exponential, x);
    }
  }
  // An element less the largest.
  __device__ __forceinline__ T shifted(T v) const { return sub(v, max); }

  // y[c] = f(c, exponential, a[c]...)
  template <class F, class... A>
  __device__ __forceinline__ void store(S* y, F&& f, const A*... a) const {
    if constexpr (in_registers)
      row.store(y, [&](int j, int64_t c, auto... v) { return f(c, held[j], v...); }, a...);
    else if constexpr (Row::staged)
      row.store(y, [&](int, int64_t c, T e, auto... v) { return f(c, e, v...); }, row.template stage<T>(0), a...);
    else
      row.store(
          y,
          [&](int, int64_t c, T e, auto... v) {
            return f(c, in_output && output ? e : exp_nonpositive(shifted(e)), v...);
          },
          in_output && output ? output : x, a...);
  }
  // y[c] = f(shifted element)
  template <class F>
  __device__ __forceinline__ void store_shifted(S* y, F&& f) const {
    if constexpr (in_registers)
      row.store(y, [&](int j, int64_t) { return f(held[j]); });
    else if constexpr (Row::staged)
      row.store(y, [&](int, int64_t, T s) { return f(s); }, row.template stage<T>(0));
    else
      row.store(y, [&](int, int64_t, T v) { return f(shifted(v)); }, x);
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
