// dropout as an eager call means it; the operator itself takes a key and is a function of its arguments.
#pragma once

#include <ATen/core/Tensor.h>

namespace pytorch_ext {

// Draws a key. `input` itself where nothing is dropped, as in torch; with `inplace`, `input` overwritten.
at::Tensor dropout_with_new_key(const at::Tensor& input, double p, bool training, bool inplace);

}  // namespace pytorch_ext
