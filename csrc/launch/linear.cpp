// linear: y = activation(x W^T + b) and its gradients. Memory and launch shapes; the arithmetic is in the kernels.
#include <ATen/ops/empty.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include "../cpu/linear.h"
#include "activation_names.h"
#include "tensor_cores.h"

namespace pytorch_ext {

bool alike(const Tensor& a, const Tensor& b) {
  return a.device() == b.device() &&
         (a.scalar_type() == b.scalar_type() || at::autocast::is_autocast_enabled(a.device().type()));
}

bool products_are_ieee(const Tensor& operand) {
  if (operand.scalar_type() != at::kFloat) return true;
  auto backend = operand.is_cuda() ? at::Float32Backend::CUDA : at::Float32Backend::MKLDNN;
  auto precision = at::globalContext().float32Precision(backend, at::Float32Op::MATMUL);
  return precision != at::Float32Precision::TF32 && precision != at::Float32Precision::BF16;
}

bool covers_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, std::string_view activation) {
  auto matches = [&](const Tensor& t) { return alike(t, input) && is_kernel_dtype(t.scalar_type()); };
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && matches(weight) && input.dim() >= 1 &&
         weight.dim() == 2 && input.size(-1) == weight.size(1) &&
         (!bias || (matches(*bias) && bias->dim() == 1 && bias->size(0) == weight.size(0))) &&
         find_activation(activation) && products_are_ieee(input);
}

namespace {

// All leading dimensions as rows: a view where the strides allow it.
Tensor as_rows(const Tensor& t) {
  if (t.dim() == 2) return t;
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); d++) rows *= t.size(d);
  return t.reshape({rows, t.size(-1)});
}

template <class S>
MatrixView<S> view(const Tensor& t) {
  return {data<S>(t), t.stride(0), t.stride(1)};
}
template <class S>
MatrixView<S> transposed(const Tensor& t) {
  return {data<S>(t), t.stride(1), t.stride(0)};
}

void check_linear(const Tensor& input, const Tensor& weight) {
  check_same("linear", "weight", weight, input);
  TORCH_CHECK(input.dim() >= 1 && weight.dim() == 2 && input.size(-1) == weight.size(1),
              "linear: expected input (..., K) and weight (N, K), got ", input.sizes(), " and ", weight.sizes());
}

std::tuple<Tensor, Tensor> stock_linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                                std::string_view activation, Activation kind) {
  Tensor z = at::linear(input, weight, bias);
  if (kind == Activation::none) return {z, Tensor()};
  Tensor y = ops::activation_forward(z, activation);
  return {y, saves_input(kind) ? z : Tensor()};
}

// (output, what the backward pass asks for where it is not the output and is to be saved)
std::tuple<Tensor, Tensor> output_and_saved(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                            std::string_view activation, bool saves) {
  check_linear(input, weight);
  auto kind = activation_named("linear", activation);
  const int64_t N = weight.size(0);
  OptionalTensor b;
  if (bias) {
    check_same("linear", "bias", *bias, input);
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == N, "linear: expected bias (", N, ",), got ", bias->sizes());
    b = bias->contiguous();
  }
  if (has_stock_products(input)) return stock_linear_forward(input, weight, bias, activation, kind);
  auto sizes = input.sizes().vec();
  sizes.back() = N;
  Tensor output, saved, rows = as_rows(input);
  WITH_STORAGE_TYPE("linear", input.scalar_type(), [&] {
    TensorCoreProduct<S> p{{rows.size(0), N, weight.size(1), view<S>(rows), transposed<S>(weight), nullptr, N}};
    if (!covers_product(input, p)) return;
    output = empty(sizes, input);
    p.C = mutable_data<S>(output);
    p.bias = data<S>(b);
    p.activation = kind;
    if (saves && saves_input(kind)) {
      saved = empty(sizes, input);
      p.preactivation = mutable_data<S>(saved);
    } else if (saves && kind == Activation::relu && sizeof(S) == 2 && input.is_cuda()) {
      saved = at::empty({rows.size(0), mask_words(N)}, input.options().dtype(at::kLong));
      p.mask = static_cast<uint64_t*>(saved.mutable_data_ptr());
    }
    run_product(input, p);
  });
  if (!output.defined()) return stock_linear_forward(input, weight, bias, activation, kind);
  return {output, saved};
}

std::tuple<Tensor, Tensor> linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          std::string_view activation) {
  return output_and_saved(input, weight, bias, activation, /*saves=*/true);
}

Tensor linear_inference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        std::string_view activation) {
  return std::get<0>(output_and_saved(input, weight, bias, activation, /*saves=*/false));
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& saved, std::string_view activation,
                                                   std::array<bool, 3> mask) {
  check_linear(input, weight);
  check_same("linear_backward", "grad", grad, input);
  auto kind = activation_named("linear_backward", activation);
  Tensor g = as_rows(grad), x = as_rows(input), s;
  const int64_t M = x.size(0), N = weight.size(0), K = weight.size(1);
  TORCH_CHECK(g.size(0) == M && g.size(1) == N, "linear_backward: expected grad (", M, ", ", N, "), got ", g.sizes());
  bool is_mask = false;
  if (kind != Activation::none) {
    TORCH_CHECK(saved, "linear_backward: expected the saved tensor of activation ", activation, ", got None");
    is_mask = is_relu_mask(*saved) && kind == Activation::relu && g.element_size() == 2 && g.is_cuda();
    if (!is_mask) check_same("linear_backward", "saved", *saved, input);
    s = as_rows(*saved).contiguous();
    const std::array<int64_t, 2> sizes{M, is_mask ? mask_words(N) : N};
    TORCH_CHECK(s.sizes() == sizes && s.device() == g.device(), "linear_backward: expected saved ",
                at::IntArrayRef(sizes), " on ", g.device(), ", got ", s.sizes(), " on ", s.device());
  }
  if (g.stride(1) != 1 && g.stride(1) != 0) g = g.contiguous();
  Tensor dx, dw, db, dz = g;
  if (mask[2]) db = empty({N}, grad);
  if (s.defined()) dz = empty({M, N}, grad);
  WITH_STORAGE_TYPE("linear_backward", input.scalar_type(), [&] {
    if (s.defined() || db.defined()) {
      LinearGradient<S> p{M, N, data<S>(g), g.stride(0), g.stride(1)};
      p.activation = kind;
      p.dbias = mutable_data<S>(db);
      if (s.defined()) {
        if (is_mask)
          p.mask = static_cast<const uint64_t*>(s.const_data_ptr());
        else
          p.saved = data<S>(s);
        p.dz = mutable_data<S>(dz);
      }
      RUN_KERNEL(input, linear_gradient<S>)(p);
    }
    auto multiply = [&](TensorCoreProduct<S> p, Tensor& result, at::IntArrayRef sizes) {
      if (!covers_product(input, p)) return;
      result = empty(sizes, input);
      p.C = mutable_data<S>(result);
      run_product(input, p);
    };
    if (mask[0]) multiply({{M, K, N, view<S>(dz), view<S>(weight), nullptr, K}}, dx, input.sizes());
    if (mask[1]) multiply({{N, K, M, transposed<S>(dz), view<S>(x), nullptr, K}}, dw, {N, K});
  });
  if (mask[0] && !dx.defined()) dx = at::mm(dz, weight).view(input.sizes());
  if (mask[1] && !dw.defined()) dw = at::mm(dz.t(), x);
  return {dx, dw, db};
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("linear_inference", &linear_inference);
  m.impl("linear_forward", &linear_forward);
  m.impl("linear_backward", &linear_backward);
}

}  // namespace pytorch_ext
