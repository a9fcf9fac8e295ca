// The typed way to call every operator of ops.cpp through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace pytorch_ext::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation);
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          std::string_view activation);
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask);

}  // namespace pytorch_ext::ops
