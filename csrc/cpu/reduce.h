// Sums by the sum rule: over one index of an array of three, which is the gradient of a broadcast argument, and the dot
// product of two vectors.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// y[o, j] = sum over i of x[o * x_outer + i * x_row + j * x_inner]; y is (outer, inner) contiguous.
// Either x_inner is 1, or x_row is.
template <class S>
struct SliceSum {
  int64_t outer, rows, inner;
  const S* x;
  int64_t x_outer, x_row, x_inner;
  S* y;
};

// *result = the sum of x[i * x_stride] * y[i * y_stride] over i < count, each product rounded.
template <class S>
struct DotProduct {
  int64_t count;
  const S* x;
  int64_t x_stride;
  const S* y;
  int64_t y_stride;
  S* result;
};

#define PYTORCH_EXT_DECLARE(isa)            \
  namespace isa {                           \
  template <class S>                        \
  void sum_slices(const SliceSum<S>& p);    \
  template <class S>                        \
  void dot_product(const DotProduct<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
