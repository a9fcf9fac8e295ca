// The rows along one dimension of a tensor.
#pragma once

#include <ATen/WrapDimUtils.h>

namespace pytorch_ext {

// (outer, columns, inner). A tensor without dimensions is one row of one element.
struct RowShape {
  int64_t outer = 1, columns = 1, inner = 1;

  RowShape() = default;
  RowShape(at::IntArrayRef sizes, int64_t dim) {
    const auto dims = static_cast<int64_t>(sizes.size());
    dim = at::maybe_wrap_dim(dim, dims);
    for (int64_t d = 0; d < dims; d++) (d < dim ? outer : d == dim ? columns : inner) *= sizes[d];
  }
};

}  // namespace pytorch_ext
