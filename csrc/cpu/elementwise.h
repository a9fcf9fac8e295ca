// The functions of numerics/functions.h over an array: what the tests and the self-test at import compare bit by bit.
#pragma once

#include <cstdint>

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// y[i] = f(x[i]) for S float or double. x and y may be the same array.
#define PYTORCH_EXT_DECLARE(isa)                                \
  namespace isa {                                               \
  template <class S>                                            \
  void apply_function(Function f, int64_t n, const S* x, S* y); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
