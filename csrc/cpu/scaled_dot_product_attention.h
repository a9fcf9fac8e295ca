// scaled_dot_product_attention head by head: the scores of a block of queries stay in a core's cache, or in a device's
// workspace, and are computed again for the gradients. Every operation is that of the products and the softmax, in the
// same order.
#pragma once

#include "../numerics/platform.h"
#include "capability.h"
#include "product.h"

namespace pytorch_ext {

// The matrices of one kind of all heads: that of head h begins `offset[h]` elements after data.
template <class S>
struct Heads {
  MatrixView<S> first;
  const int64_t* offset;
  INLINE_HD MatrixView<S> of(int64_t h) const { return {first.data + offset[h], first.row, first.column}; }
};

template <class S>
struct Attention {
  int64_t heads, queries, keys, width, value_width;
  Heads<S> q, k, v;              // (queries, width), (keys, width), (keys, value_width)
  Heads<S> added;                // (queries, keys), added to the scores; or without data
  Heads<unsigned char> allowed;  // instead: 0 adds -inf, anything else 0; GCC vectorises no loop over bool
  bool is_causal;                // query i sees the keys up to i
  S scale;
};

// Queries of a block of the output, on a device too: with causality its sums leave out the keys that none of its
// queries sees, which shows where such a key is NaN. On the CPU its scores of a thousand keys fit a core's second
// cache.
constexpr int64_t QUERIES_PER_BLOCK = 128;

template <class S>
struct AttentionOutput {
  Attention<S> of;
  S* output;  // (heads, queries, value_width) contiguous
};

// Gradients that are null are not computed. A hidden row, and what causality hides, has the weight 0.
template <class S>
struct AttentionGradient {
  Attention<S> of;
  Heads<S> grad;    // (queries, value_width)
  S *dq, *dk, *dv;  // contiguous, one for every head
};

#define PYTORCH_EXT_DECLARE(isa)                                             \
  namespace isa {                                                            \
  template <class S>                                                         \
  void scaled_dot_product_attention(const AttentionOutput<S>& p);            \
  template <class S>                                                         \
  void scaled_dot_product_attention_gradient(const AttentionGradient<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
