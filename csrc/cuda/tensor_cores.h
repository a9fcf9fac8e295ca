// Products of 16-bit operands on the tensor cores, as the launch code asks for them. No CUDA header is needed.
#pragma once

#include "../cpu/product.h"
#include "../numerics/platform.h"

namespace pytorch_ext {

// A Product without a_offset and b_offset: the matrices of a batch are equally far apart.
template <class S>
struct TensorCoreProduct : Product<S> {
  int64_t a_batch = 0, b_batch = 0;  // elements between A[b] and A[b + 1]; 0: one A for the whole batch
  // With relu: bit column % 64 of mask[row * mask_words(N) + column / 64] is 0 where the gradient is. For batch = 1.
  uint64_t* mask = nullptr;
};

INLINE_HD int64_t mask_words(int64_t columns) { return (columns + 63) / 64; }

}  // namespace pytorch_ext
