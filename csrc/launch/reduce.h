// Gradients of broadcast arguments.
#pragma once

#include <ATen/core/Tensor.h>

namespace pytorch_ext {

// Tensor.sum_to_size in the contract's order: every element of the result is the sum, by the sum rule, over the
// flattened index (row-major, ascending) of the dimensions that were broadcast. `t` itself where nothing is to be
// summed.
at::Tensor sum_to_size(const at::Tensor& t, at::IntArrayRef sizes);

}  // namespace pytorch_ext
