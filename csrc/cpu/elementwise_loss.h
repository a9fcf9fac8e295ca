// Losses that compare input and target element by element: value and gradients in one pass.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// Arrays are contiguous and have `count` elements where nothing else is said.
template <class S>
struct ElementwiseLossArrays {
  ElementwiseLoss loss;
  Reduction reduction;
  int64_t count;
  const S *input, *target;
  const S* weight = nullptr;       // null: 1
  const S* pos_weight = nullptr;   // null: none
  const S* mean_weight = nullptr;  // Reduction::mean divides by the sum of these; null: by `count`
  int64_t mean_weight_count = 0;
  const S* grad = nullptr;  // of the value, which has its shape; null: 1
  S* value = nullptr;       // one element, with Reduction::none `count`
  S* dinput = nullptr;
  S* dtarget = nullptr;
  bool in_advance = false;  // they hold the gradients for a grad of 1: a device leaves them where grad is that
};

// Outputs that are null are not wanted. False where the loss is one of probabilities, its value is wanted, and an input
// or a target lies outside [0, 1] or is NaN.
#define PYTORCH_EXT_DECLARE(isa)                            \
  namespace isa {                                           \
  template <class S>                                        \
  bool elementwise_loss(const ElementwiseLossArrays<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
