// The leading dimensions of matrices.
#pragma once

#include <ATen/core/Tensor.h>

namespace pytorch_ext {

inline at::IntArrayRef batch_of(const at::Tensor& t) { return t.sizes().slice(0, t.dim() - 2); }

inline at::DimVector with_matrix(at::IntArrayRef batch, int64_t rows, int64_t columns) {
  at::DimVector sizes(batch.begin(), batch.end());
  sizes.push_back(rows);
  sizes.push_back(columns);
  return sizes;
}

// For every matrix of a batch of these sizes, `count` in all, the elements between t's first one and the one it is
// computed from; where t is. (matmul.cpp)
at::Tensor batch_offsets(const at::Tensor& t, at::IntArrayRef batch, int64_t count);

}  // namespace pytorch_ext
