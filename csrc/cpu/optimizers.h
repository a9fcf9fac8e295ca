// Optimiser updates and gradient clipping over a list of tensors in one call.
#pragma once

#include "../numerics/updates.h"
#include "capability.h"

namespace pytorch_ext {

template <class S>
struct SgdTensor {
  int64_t count;
  S* param;
  const S* grad;
  S* buffer;   // the momentum buffer, or null
  bool first;  // the buffer holds nothing yet
};

template <class S>
struct AdamTensor {
  int64_t count;
  S* param;
  const S* grad;
  S *exp_avg, *exp_avg_sq, *max_exp_avg_sq;  // the last one null without amsgrad
  compute_t<S> negative_step_size, scale;
};

template <class S>
struct GradTensor {
  int64_t count;
  S* grad;
};

#define PYTORCH_EXT_DECLARE(isa)                                                                                     \
  namespace isa {                                                                                                    \
  template <class S>                                                                                                 \
  void sgd_step(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>* tensors, int64_t count);                      \
  template <class S>                                                                                                 \
  void adam_step(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>* tensors, int64_t count);                   \
  template <class S>                                                                                                 \
  void gradient_norm(const GradTensor<S>* tensors, int64_t count, compute_t<S>* norm);                               \
  template <class S>                                                                                                 \
  void clip_gradients(const GradTensor<S>* tensors, int64_t count, compute_t<S> max_norm, const compute_t<S>* norm); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
