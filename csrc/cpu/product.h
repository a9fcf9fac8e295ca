// Matrix products in the contract's order: per output element, K in chunks of 256, one ascending fma chain from +0 in
// each, chunks added left to right; then the bias (one add), then the activation.
#pragma once

#include "../numerics/kinds.h"
#include "capability.h"

namespace pytorch_ext {

// A matrix in memory: element (i, j) at data[i * row + j * column]. Strides count elements and may be 0 or negative.
template <class S>
struct MatrixView {
  const S* data;
  int64_t row, column;
};

// `batch` products: C[b] = activation(A[b] B[b] + bias), A (M, K), B (K, N), C (M, N).
template <class S>
struct Product {
  int64_t M, N, K;
  MatrixView<S> A, B;
  S* C;
  int64_t c_row;            // elements between rows of C; its columns are contiguous
  const S* bias = nullptr;  // (N,) contiguous, or none
  Activation activation = Activation::none;
  S* preactivation = nullptr;  // where given: A B + bias before the activation, laid out as C
  int64_t batch = 1;
  const int64_t* a_offset = nullptr;  // (batch,) element offsets of A[b] and B[b] from data; null for batch = 1
  const int64_t* b_offset = nullptr;
  int64_t c_batch = 0;  // elements between C[b] and C[b + 1], and in preactivation
  // C holds the sums of earlier chunks of a longer K, to which these are added: float and double alone, nothing after.
  bool accumulates = false;
};

// offsets[b], b < count: the elements before matrix b of a batch of these sizes and strides, the last dimension
// fastest.
struct BatchOffsets {
  static constexpr int most_dims = 24;
  int dims;
  int64_t size[most_dims], stride[most_dims];
  int64_t count;
  int64_t* offsets;
};

#define PYTORCH_EXT_DECLARE(isa)     \
  namespace isa {                    \
  template <class S>                 \
  void product(const Product<S>& p); \
  }
PYTORCH_EXT_EACH_ISA(PYTORCH_EXT_DECLARE)
#undef PYTORCH_EXT_DECLARE

}  // namespace pytorch_ext
