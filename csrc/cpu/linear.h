// The part of linear's backward that is no product: the activation's derivative and the bias gradient, in one pass.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

template <class S>
struct LinearGradient {
  int64_t rows, columns;
  const S* grad;                  // dL/dy: element (i, j) at grad[i * grad_row + j * grad_column]
  int64_t grad_row, grad_column;  // grad_column is 1 or 0
  const S* saved = nullptr;       // (rows, columns) contiguous: y or z as saves_input() says; null without activation
  Activation activation = Activation::none;
  const uint64_t* mask = nullptr;  // instead of saved: relu's, as TensorCoreProduct says; on a device alone
  S* dz = nullptr;                 // dL/dz, contiguous; null where it is not needed (no activation)
  S* dbias = nullptr;              // (columns,): sum of dz over the rows by the sum rule; null where not needed
};

#define PYTORCH_EXT_DECLARE(isa)                    \
  namespace isa {                                   \
  template <class S>                                \
  void linear_gradient(const LinearGradient<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
