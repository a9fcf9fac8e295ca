// cross_entropy and nll_loss: value and gradients in one pass over the logits.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// The logits are (outer, classes, inner): element (o, c, i) at o * input_outer + c * inner + i. Row o * inner + i is
// one distribution over the classes. Gradients and class probabilities are contiguous, in the same order.
template <class S>
struct ClassificationLoss {
  using T = compute_t<S>;
  int64_t outer, classes, inner;
  const S* input;
  int64_t input_outer;
  const int64_t* indices = nullptr;  // one per row, in [0, classes) or ignore_index; else
  const S* probabilities = nullptr;  // (outer, classes, inner)
  int64_t ignore_index = -100;
  int64_t counted_rows = 0;   // rows that are not ignored
  const S* weight = nullptr;  // (classes,); null: 1
  bool smoothed = false;
  T kept = 1, spread = 0, on_target = 1;  // 1 - eps, eps / classes, their sum
  Reduction reduction = Reduction::mean;
  const S* grad = nullptr;  // of the loss: one element, with Reduction::none one per row; null: 1
  S* loss = nullptr;        // likewise; null where not wanted, as are
  S* dinput = nullptr;
  S* dprobabilities = nullptr;
  bool in_advance = false;  // dinput holds the gradient for a grad of 1: a device leaves it where grad is that
};

#define PYTORCH_EXT_DECLARE(isa)                                                    \
  namespace isa {                                                                   \
  template <class S>                                                                \
  void cross_entropy(const ClassificationLoss<S>& p);                               \
  template <class S> /* of log-probabilities and class indices; dinput is all +0 */ \
  void nll_loss(const ClassificationLoss<S>& p);                                    \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
