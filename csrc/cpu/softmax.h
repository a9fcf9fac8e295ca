// softmax and log_softmax: both directions.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// Arrays are (outer, columns, inner), contiguous: element (o, c, i) at (o * columns + c) * inner + i. Only x may have
// its own distance x_outer between two o. Row o * inner + i is one distribution over the columns.
template <class S>
struct Softmax {
  int64_t outer, columns, inner;
  const S* x;
  int64_t x_outer;
  S* y;
  bool logarithm;
};

template <class S>
struct SoftmaxGradient {
  int64_t outer, columns, inner;
  const S* grad;  // dL/dy
  const S* y;
  S* dx;
  bool logarithm;
};

#define PYTORCH_EXT_DECLARE(isa)                      \
  namespace isa {                                     \
  template <class S>                                  \
  void softmax(const Softmax<S>& p);                  \
  template <class S>                                  \
  void softmax_gradient(const SoftmaxGradient<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
