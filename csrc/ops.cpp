// Every operator's schema: the table of contents of the native library.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

TORCH_LIBRARY(pytorch_ext, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor");
  m.def("linear_inference(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor");
  m.def("linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor)");
  m.def(
      "linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? saved, str activation, bool[3] mask)"
      " -> (Tensor, Tensor, Tensor)");

  m.def("matmul(Tensor input, Tensor other) -> Tensor");
  m.def("matmul_forward(Tensor input, Tensor other) -> Tensor");
  m.def("matmul_backward(Tensor grad, Tensor input, Tensor other, bool[2] mask) -> (Tensor, Tensor)");

  m.def(
      "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal,"
      " float? scale) -> Tensor");
  m.def(
      "scaled_dot_product_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal,"
      " float? scale) -> Tensor");
  m.def(
      "scaled_dot_product_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? attn_mask,"
      " bool is_causal, float? scale, bool[3] mask) -> (Tensor, Tensor, Tensor)");

  m.def("softmax(Tensor input, int dim, ScalarType? dtype=None) -> Tensor");
  m.def("log_softmax(Tensor input, int dim, ScalarType? dtype=None) -> Tensor");
  m.def("softmax_forward(Tensor input, int dim, bool logarithm) -> Tensor");
  m.def("softmax_backward(Tensor grad, Tensor output, int dim, bool logarithm) -> Tensor");

  m.def("activation(Tensor input, str kind) -> Tensor");
  m.def("activation_forward(Tensor input, str kind) -> Tensor");
  m.def("activation_backward(Tensor grad, Tensor saved, str kind) -> Tensor");

  m.def("dropout(Tensor input, float p, Tensor key) -> Tensor");
  m.def("dropout_forward(Tensor input, float p, Tensor key) -> Tensor");
  m.def("dropout_key(Generator? generator=None) -> Tensor", {at::Tag::nondeterministic_seeded});

  m.def("mse_loss(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  m.def("binary_cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  m.def(
      "binary_cross_entropy_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction)"
      " -> Tensor");
  m.def(
      "elementwise_loss_inference(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str loss,"
      " int reduction) -> Tensor");
  m.def(
      "elementwise_loss_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str loss,"
      " int reduction, bool[2] mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "elementwise_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str "
      "loss,"
      " int reduction, bool[2] mask) -> (Tensor, Tensor)");
  m.def(
      "elementwise_loss_backward_into(Tensor grad, Tensor(a!)? dinput, Tensor(b!)? dtarget, Tensor input,"
      " Tensor target, Tensor? weight, Tensor? pos_weight, str loss, int reduction) -> ()");

  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float "
      "label_smoothing)"
      " -> Tensor");
  m.def(
      "cross_entropy_inference(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index,"
      " float label_smoothing) -> Tensor");
  m.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index,"
      " float label_smoothing, bool with_gradient) -> (Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int "
      "ignore_index,"
      " float label_smoothing, bool[2] mask) -> (Tensor, Tensor)");
  m.def(
      "cross_entropy_backward_into(Tensor grad, Tensor(a!) dinput, Tensor input, Tensor target, Tensor? weight,"
      " int reduction, int ignore_index, float label_smoothing) -> ()");

  m.def(
      "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight,"
      " int reduction, int ignore_index, float label_smoothing, ScalarType? dtype=None) -> Tensor");
  m.def(
      "linear_cross_entropy_inference(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias,"
      " Tensor? weight, int reduction, int ignore_index, float label_smoothing, ScalarType? dtype) -> Tensor");
  m.def(
      "linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias,"
      " Tensor? weight, int reduction, int ignore_index, float label_smoothing, ScalarType? dtype, bool[3] mask)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor input, Tensor linear_weight, Tensor target,"
      " Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, float label_smoothing, bool[3] mask)"
      " -> (Tensor, Tensor, Tensor)");

  m.def("nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor");
  m.def("nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor");
  m.def(
      "nll_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index)"
      " -> Tensor");
}

namespace pytorch_ext::ops {
namespace {

// The operator `name`, looked up once.
template <class Function>
c10::TypedOperatorHandle<Function> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

#define CALL(name, ...)                                               \
  static const auto op = find<decltype(name)>("pytorch_ext::" #name); \
  return op.call(__VA_ARGS__)

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation) {
  CALL(linear, input, weight, bias, activation);
}
Tensor linear_inference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        std::string_view activation) {
  CALL(linear_inference, input, weight, bias, activation);
}
std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          std::string_view activation) {
  CALL(linear_forward, input, weight, bias, activation);
}
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask) {
  CALL(linear_backward, grad, input, weight, saved, activation, mask);
}

Tensor matmul(const Tensor& input, const Tensor& other) { CALL(matmul, input, other); }
Tensor matmul_forward(const Tensor& input, const Tensor& other) { CALL(matmul_forward, input, other); }
std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad, const Tensor& input, const Tensor& other,
                                           std::array<bool, 2> mask) {
  CALL(matmul_backward, grad, input, other, mask);
}

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, bool is_causal, std::optional<double> scale) {
  CALL(scaled_dot_product_attention, query, key, value, attn_mask, is_causal, scale);
}
Tensor scaled_dot_product_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const OptionalTensor& attn_mask, bool is_causal,
                                            std::optional<double> scale) {
  CALL(scaled_dot_product_attention_forward, query, key, value, attn_mask, is_causal, scale);
}
std::tuple<Tensor, Tensor, Tensor> scaled_dot_product_attention_backward(const Tensor& grad, const Tensor& query,
                                                                         const Tensor& key, const Tensor& value,
                                                                         const OptionalTensor& attn_mask,
                                                                         bool is_causal, std::optional<double> scale,
                                                                         std::array<bool, 3> mask) {
  CALL(scaled_dot_product_attention_backward, grad, query, key, value, attn_mask, is_causal, scale, mask);
}

Tensor softmax(const Tensor& input, int64_t dim, OptionalType dtype) { CALL(softmax, input, dim, dtype); }
Tensor log_softmax(const Tensor& input, int64_t dim, OptionalType dtype) { CALL(log_softmax, input, dim, dtype); }
Tensor softmax_forward(const Tensor& input, int64_t dim, bool logarithm) {
  CALL(softmax_forward, input, dim, logarithm);
}
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, bool logarithm) {
  CALL(softmax_backward, grad, output, dim, logarithm);
}

Tensor activation(const Tensor& input, std::string_view kind) { CALL(activation, input, kind); }
Tensor activation_forward(const Tensor& input, std::string_view kind) { CALL(activation_forward, input, kind); }
Tensor activation_backward(const Tensor& grad, const Tensor& saved, std::string_view kind) {
  CALL(activation_backward, grad, saved, kind);
}

Tensor dropout(const Tensor& input, double p, const Tensor& key) { CALL(dropout, input, p, key); }
Tensor dropout_forward(const Tensor& input, double p, const Tensor& key) { CALL(dropout_forward, input, p, key); }
Tensor dropout_key(const std::optional<at::Generator>& generator) { CALL(dropout_key, generator); }

Tensor mse_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction) {
  CALL(mse_loss, input, target, weight, reduction);
}
Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                            int64_t reduction) {
  CALL(binary_cross_entropy, input, target, weight, reduction);
}
Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const OptionalTensor& pos_weight, int64_t reduction) {
  CALL(binary_cross_entropy_with_logits, input, target, weight, pos_weight, reduction);
}
Tensor elementwise_loss_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  CALL(elementwise_loss_inference, input, target, weight, pos_weight, loss, reduction);
}
std::tuple<Tensor, Tensor, Tensor> elementwise_loss_forward(const Tensor& input, const Tensor& target,
                                                            const OptionalTensor& weight,
                                                            const OptionalTensor& pos_weight, std::string_view loss,
                                                            int64_t reduction, std::array<bool, 2> mask) {
  CALL(elementwise_loss_forward, input, target, weight, pos_weight, loss, reduction, mask);
}
std::tuple<Tensor, Tensor> elementwise_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                     const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                                     std::string_view loss, int64_t reduction,
                                                     std::array<bool, 2> mask) {
  CALL(elementwise_loss_backward, grad, input, target, weight, pos_weight, loss, reduction, mask);
}
void elementwise_loss_backward_into(const Tensor& grad, const OptionalTensor& dinput, const OptionalTensor& dtarget,
                                    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                    const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  CALL(elementwise_loss_backward_into, grad, dinput, dtarget, input, target, weight, pos_weight, loss, reduction);
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index, double label_smoothing) {
  CALL(cross_entropy, input, target, weight, reduction, ignore_index, label_smoothing);
}
Tensor cross_entropy_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, int64_t ignore_index, double label_smoothing) {
  CALL(cross_entropy_inference, input, target, weight, reduction, ignore_index, label_smoothing);
}
std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& input, const Tensor& target,
                                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing, bool with_gradient) {
  CALL(cross_entropy_forward, input, target, weight, reduction, ignore_index, label_smoothing, with_gradient);
}
std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                  double label_smoothing, std::array<bool, 2> mask) {
  CALL(cross_entropy_backward, grad, input, target, weight, reduction, ignore_index, label_smoothing, mask);
}
void cross_entropy_backward_into(const Tensor& grad, const Tensor& dinput, const Tensor& input, const Tensor& target,
                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                 double label_smoothing) {
  CALL(cross_entropy_backward_into, grad, dinput, input, target, weight, reduction, ignore_index, label_smoothing);
}

Tensor linear_cross_entropy(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                            const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                            int64_t ignore_index, double label_smoothing, OptionalType dtype) {
  CALL(linear_cross_entropy, input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
       label_smoothing, dtype);
}
Tensor linear_cross_entropy_inference(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                      const OptionalTensor& linear_bias, const OptionalTensor& weight,
                                      int64_t reduction, int64_t ignore_index, double label_smoothing,
                                      OptionalType dtype) {
  CALL(linear_cross_entropy_inference, input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
       label_smoothing, dtype);
}
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
    const OptionalTensor& weight, int64_t reduction, int64_t ignore_index, double label_smoothing, OptionalType dtype,
    std::array<bool, 3> mask) {
  CALL(linear_cross_entropy_forward, input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
       label_smoothing, dtype, mask);
}
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& linear_weight, const Tensor& target,
                                                                 const OptionalTensor& linear_bias,
                                                                 const OptionalTensor& weight, int64_t reduction,
                                                                 int64_t ignore_index, double label_smoothing,
                                                                 std::array<bool, 3> mask) {
  CALL(linear_cross_entropy_backward, grad, input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
       label_smoothing, mask);
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                int64_t ignore_index) {
  CALL(nll_loss, input, target, weight, reduction, ignore_index);
}
Tensor nll_loss_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                        int64_t ignore_index) {
  CALL(nll_loss_forward, input, target, weight, reduction, ignore_index);
}
Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index) {
  CALL(nll_loss_backward, grad, input, target, weight, reduction, ignore_index);
}

#undef CALL

}  // namespace pytorch_ext::ops
