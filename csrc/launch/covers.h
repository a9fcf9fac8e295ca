// Whether the kernels take these arguments, op by op: what is refused here goes on to the Python function, which raises
// or takes the stock operator. Each mirrors the checks at the head of its launcher.
#pragma once

#include "../ops.h"

namespace pytorch_ext {

// Same device and same dtype, or dtypes that autocast will make the same.
bool alike(const at::Tensor& a, const at::Tensor& b);

// Whether float32 products may follow the contract's order, or torch's flags ask for TF32 or bfloat16 products.
bool products_are_ieee(const at::Tensor& operand);

// Whether products of such operands are left to the stock operator, whatever their shapes: those of 16 bits on a
// device, which has tensor cores for them, unless our own are asked for (tensor_cores.h).
bool has_stock_products(const at::Tensor& operand);

bool covers_linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   std::string_view activation);

// Whether what linear_forward saved is relu's mask (TensorCoreProduct::mask), not an activation's input or output.
inline bool is_relu_mask(const at::Tensor& saved) { return saved.scalar_type() == at::kLong; }

bool covers_matmul(const at::Tensor& input, const at::Tensor& other);

// Without a gradient of the mask; the Python function composes the others.
bool covers_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const std::optional<at::Tensor>& attn_mask, bool is_causal, std::optional<double> scale);

bool covers_softmax(const at::Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype);  // and log_softmax

bool covers_activation(const at::Tensor& input, std::string_view kind);

bool covers_dropout(const at::Tensor& input, double p, bool training, bool inplace);

// Input and target of one shape; mse_loss also takes shapes that broadcast, which the Python function warns about.
bool covers_mse_loss(const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
                     int64_t reduction);
bool covers_mse_loss_broadcast(const at::Tensor& input, const at::Tensor& target,
                               const std::optional<at::Tensor>& weight, int64_t reduction);
bool covers_binary_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                 const std::optional<at::Tensor>& weight, int64_t reduction);
bool covers_binary_cross_entropy_with_logits(const at::Tensor& input, const at::Tensor& target,
                                             const std::optional<at::Tensor>& weight,
                                             const std::optional<at::Tensor>& pos_weight, int64_t reduction);

bool covers_cross_entropy(const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
                          int64_t reduction, int64_t ignore_index, double label_smoothing);
bool covers_linear_cross_entropy(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                                 const std::optional<at::Tensor>& linear_bias, const std::optional<at::Tensor>& weight,
                                 int64_t reduction, int64_t ignore_index, double label_smoothing,
                                 std::optional<at::ScalarType> dtype);
bool covers_nll_loss(const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
                     int64_t reduction, int64_t ignore_index);

}  // namespace pytorch_ext
