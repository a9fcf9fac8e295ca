// Activations on their own: memory and checks; the arithmetic is in the kernel.
#include "../cpu/activation.h"

#include "activation_names.h"
#include "covers.h"
#include "kernel.h"

namespace pytorch_ext {

// On the CPU more bfloat16 values than these are the stock gelu's. Measured on an EPYC with AVX-512, torch 2.13, one
// thread, stock's time over ours: 64x128 1.5, 256x1024 0.42; every other activation of 16 bits 0.95 to 3.9.
constexpr int64_t MOST_GELU_VALUES = int64_t(1) << 14;

bool covers_activation(const Tensor& input, std::string_view kind) {
  const bool is_stock_s =
      input.is_cpu() && input.scalar_type() == at::kBFloat16 && kind == "gelu" && input.numel() > MOST_GELU_VALUES;
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && !is_stock_s && find_activation(kind);
}

namespace {

// The elements without gaps, in the order of memory that torch gives a result: a tensor's own where it has no gaps.
Tensor without_gaps(const Tensor& t) {
  if (t.numel() == 0) return empty(t.sizes(), t);  // where torch knows no order
  return t.is_non_overlapping_and_dense() ? t : new_like(t).copy_(t);
}

Tensor activation_forward(const Tensor& input, std::string_view name) {
  const Activation kind = activation_named("activation", name);
  const Tensor x = without_gaps(input), output = new_like(x);
  WITH_STORAGE_TYPE("activation", input.scalar_type(),
                    [&] { RUN_KERNEL(input, activation<S>)(kind, x.numel(), data<S>(x), mutable_data<S>(output)); });
  return output;
}

Tensor activation_backward(const Tensor& grad, const Tensor& saved, std::string_view name) {
  const Activation kind = activation_named("activation_backward", name);
  check_same("activation_backward", "grad", grad, saved);
  TORCH_CHECK(grad.sizes() == saved.sizes(), "activation_backward: expected grad ", saved.sizes(), ", got ",
              grad.sizes());
  const Tensor s = without_gaps(saved), dinput = new_like(s);
  const Tensor g = grad.strides() == s.strides() ? grad : new_like(s).copy_(grad);
  WITH_STORAGE_TYPE("activation_backward", saved.scalar_type(), [&] {
    RUN_KERNEL(saved, activation_gradient<S>)(kind, s.numel(), data<S>(g), data<S>(s), mutable_data<S>(dinput));
  });
  return dinput;
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("activation_forward", &activation_forward);
  m.impl("activation_backward", &activation_backward);
}

}  // namespace pytorch_ext
