// Whether the kernels take these arguments, op by op: what is refused here goes on to the Python function, which raises
// or takes the stock operator. Each mirrors the checks at the head of its launcher.
#pragma once

#include "../ops.h"

namespace pytorch_ext {

// Whether float32 products may follow the contract's order, or torch's flags ask for TF32 or bfloat16 products.
bool products_are_ieee(const at::Tensor& operand);

bool covers_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   std::string_view activation);

}  // namespace pytorch_ext
