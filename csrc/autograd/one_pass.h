// Losses whose forward pass also computes the gradients that the common backward pass asks for: those of
// `loss.backward()`, where the gradient of the loss is 1.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>

namespace pytorch_ext {

// Whether `t` holds numbers now: tracing replaces tensors by fake ones, and records what a mode sees.
inline bool holds_numbers(const at::Tensor& t) {
  using c10::DispatchKey;
  using c10::DispatchKeySet;
  static const DispatchKeySet abstract({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::Functionalize,
                                        DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper});
  return !t.is_meta() && !t.key_set().has_any(abstract) && !c10::impl::dispatch_mode_enabled();
}

// Whether a forward pass may compute gradients for a gradient of 1: on a device nobody could look whether it is.
inline bool computes_in_advance(const at::Tensor& input) { return input.is_cpu() && holds_numbers(input); }

// The gradient of that name, if the forward pass left one, once: who receives it owns it.
inline at::Tensor take(torch::autograd::AutogradContext* ctx, const char* name) {
  auto found = ctx->saved_data.find(name);
  if (found == ctx->saved_data.end()) return {};
  at::Tensor gradient = std::move(found->second).toTensor();
  ctx->saved_data.erase(found);
  return gradient;
}

// Whether `grad` is exactly 1, known without waiting for a device.
inline bool is_one(const at::Tensor& grad) {
  if (!holds_numbers(grad) || !grad.is_cpu() || grad.numel() != 1) return false;
  switch (grad.scalar_type()) {
    case at::kFloat: return *grad.const_data_ptr<float>() == 1;
    case at::kDouble: return *grad.const_data_ptr<double>() == 1;
    case at::kBFloat16: return *grad.const_data_ptr<at::BFloat16>() == 1;
    case at::kHalf: return *grad.const_data_ptr<at::Half>() == 1;
    default: return false;
  }
}

}  // namespace pytorch_ext
