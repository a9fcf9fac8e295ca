// The activations of numerics/activations.h on their own: value and gradient over an array.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

#define PYTORCH_EXT_DECLARE(isa)                                                              \
  namespace isa {                                                                             \
  template <class S>                                                                          \
  void activation(Activation kind, int64_t n, const S* x, S* y);                              \
  template <class S> /* dx[i] = grad[i] f'(x[i]); saved is y or x as saves_input() says */    \
  void activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
