// dropout: y = x * mask, and its gradient, which is the same with g for x.
#pragma once

#include "../numerics/kinds.h"
#include "../numerics/platform.h"
#include "capability.h"

namespace pytorch_ext {

// y[i] = x[i] * scale where the random word of element i (numerics/philox.h) is at least the threshold, else x[i] *
// (+0).
template <class S>
struct Dropout {
  int64_t n;
  const S* x;
  S* y;
  uint64_t key;
  uint32_t threshold;
  compute_t<S> scale;
  const uint64_t* key_at = nullptr;  // where the key is read when the kernel runs; null: it is `key`

  INLINE_HD uint64_t current_key() const { return key_at ? *key_at : key; }
};

#define PYTORCH_EXT_DECLARE(isa)     \
  namespace isa {                    \
  template <class S>                 \
  void dropout(const Dropout<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
