// The typed way to call every operator of ops.cpp through the dispatcher.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace pytorch_ext::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation);
// <op>_inference is the first of <op>_forward's results, where nothing will ask for a gradient: whoever runs a graph
// without Python takes no result that is absent.
Tensor linear_inference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        std::string_view activation);
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          std::string_view activation);
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask);

Tensor matmul(const Tensor& input, const Tensor& other);
Tensor matmul_forward(const Tensor& input, const Tensor& other);
std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad, const Tensor& input, const Tensor& other,
                                           std::array<bool, 2> mask);

// softmax(query * scale @ key^T + mask) @ value; the mask, boolean or of query's dtype, is a constant. The scale is
// 1 / sqrt(width) unless given.
Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, bool is_causal, std::optional<double> scale);
Tensor scaled_dot_product_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const OptionalTensor& attn_mask, bool is_causal,
                                            std::optional<double> scale);
std::tuple<Tensor, Tensor, Tensor> scaled_dot_product_attention_backward(const Tensor& grad, const Tensor& query,
                                                                         const Tensor& key, const Tensor& value,
                                                                         const OptionalTensor& attn_mask,
                                                                         bool is_causal, std::optional<double> scale,
                                                                         std::array<bool, 3> mask);

using OptionalType = std::optional<at::ScalarType>;
Tensor softmax(const Tensor& input, int64_t dim, OptionalType dtype);
Tensor log_softmax(const Tensor& input, int64_t dim, OptionalType dtype);
Tensor softmax_forward(const Tensor& input, int64_t dim, bool logarithm);
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, bool logarithm);

// `kind` is a name of launch/activation_names.h; `saved` the output or the input, as saves_input() says.
Tensor activation(const Tensor& input, std::string_view kind);
Tensor activation_forward(const Tensor& input, std::string_view kind);
Tensor activation_backward(const Tensor& grad, const Tensor& saved, std::string_view kind);

Tensor dropout(const Tensor& input, double p, const Tensor& key);
Tensor dropout_forward(const Tensor& input, double p, const Tensor& key);
Tensor dropout_key(const std::optional<at::Generator>& generator = std::nullopt);

Tensor mse_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction);
Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction);
Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const OptionalTensor& pos_weight, int64_t reduction);
// `loss` is the name of one of the three above. The forward's gradients are those for a gradient of 1.
Tensor elementwise_loss_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> elementwise_loss_forward(const Tensor& input, const Tensor& target,
                                                            const OptionalTensor& weight,
                                                            const OptionalTensor& pos_weight, std::string_view loss,
                                                            int64_t reduction, std::array<bool, 2> mask);
std::tuple<Tensor, Tensor> elementwise_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                     const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                                     std::string_view loss, int64_t reduction,
                                                     std::array<bool, 2> mask);
// Into arrays that hold the gradients for a `grad` of 1.
void elementwise_loss_backward_into(const Tensor& grad, const OptionalTensor& dinput, const OptionalTensor& dtarget,
                                    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                    const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction);

// The forward's gradient is the input's for a loss gradient of 1.
Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index, double label_smoothing);
Tensor cross_entropy_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, int64_t ignore_index, double label_smoothing);
std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& input, const Tensor& target,
                                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing, bool with_gradient);
std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                  double label_smoothing, std::array<bool, 2> mask);
// Into an array that holds the gradient for a `grad` of 1.
void cross_entropy_backward_into(const Tensor& grad, const Tensor& dinput, const Tensor& input, const Tensor& target,
                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                 double label_smoothing);

// linear_weight (C, d1, ..., in_features); linear_bias the same without the last. dtype: of the loss, where it is not
// the input's. The forward's gradients, those of input, linear_weight and linear_bias that the mask chooses, are for a
// loss gradient of 1.
Tensor linear_cross_entropy(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                            const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                            int64_t ignore_index, double label_smoothing, OptionalType dtype);
Tensor linear_cross_entropy_inference(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                      const OptionalTensor& linear_bias, const OptionalTensor& weight,
                                      int64_t reduction, int64_t ignore_index, double label_smoothing,
                                      OptionalType dtype);
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
    const OptionalTensor& weight, int64_t reduction, int64_t ignore_index, double label_smoothing, OptionalType dtype,
    std::array<bool, 3> mask);
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& linear_weight, const Tensor& target,
                                                                 const OptionalTensor& linear_bias,
                                                                 const OptionalTensor& weight, int64_t reduction,
                                                                 int64_t ignore_index, double label_smoothing,
                                                                 std::array<bool, 3> mask);

Tensor nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                int64_t ignore_index);
Tensor nll_loss_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                        int64_t ignore_index);
Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index);

}  // namespace pytorch_ext::ops
