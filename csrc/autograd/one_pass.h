// Losses whose forward pass also computes the gradients that the common backward pass asks for: those of
// `loss.backward()`, where the gradient of the loss is 1. The backward pass hands them out; where the gradient of the
// loss is another number, <op>_backward_into first writes the gradients for that one over them. On a device, which
// nobody waits for, that kernel looks itself, and touches nothing where it finds a 1.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../launch/kernel.h"

namespace pytorch_ext {

// Whether `t` holds numbers now: tracing replaces tensors by fake ones, and records what a mode sees.
inline bool holds_numbers(const at::Tensor& t) {
  using c10::DispatchKey;
  using c10::DispatchKeySet;
  static const DispatchKeySet abstract({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::Functionalize,
                                        DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper});
  return !t.is_meta() && !t.key_set().has_any(abstract) && !c10::impl::dispatch_mode_enabled();
}

// Whether a forward pass may compute gradients for a gradient of 1.
inline bool computes_in_advance(const at::Tensor& input) { return holds_numbers(input); }

inline void keep(torch::autograd::AutogradContext* ctx, const char* name, at::Tensor gradient) {
  if (const int64_t number = capture_number(gradient)) ctx->saved_data["capture"] = number;
  ctx->saved_data[name] = std::move(gradient);
}

// The gradient of that name, if the forward pass left one, once: who receives it owns it. Not where a graph records
// the forward pass without the backward pass or the other way round: replayed alone, a backward pass would meet what
// its last replay left.
inline at::Tensor take(torch::autograd::AutogradContext* ctx, const char* name, const at::Tensor& grad) {
  auto found = ctx->saved_data.find(name);
  if (found == ctx->saved_data.end() || !holds_numbers(grad)) return {};
  if (grad.is_cuda()) {
    auto capture = ctx->saved_data.find("capture");
    if (capture_number(grad) != (capture == ctx->saved_data.end() ? 0 : capture->second.toInt())) return {};
  }
  at::Tensor gradient = std::move(found->second).toTensor();
  ctx->saved_data.erase(found);
  return gradient;
}

// Whether `grad` is exactly 1, known without waiting for a device.
inline bool is_one(const at::Tensor& grad) {
  if (!grad.is_cpu() || grad.numel() != 1) return false;
  switch (grad.scalar_type()) {
    case at::kFloat: return *grad.const_data_ptr<float>() == 1;
    case at::kDouble: return *grad.const_data_ptr<double>() == 1;
    case at::kBFloat16: return *grad.const_data_ptr<at::BFloat16>() == 1;
    case at::kHalf: return *grad.const_data_ptr<at::Half>() == 1;
    default: return false;
  }
}

}  // namespace pytorch_ext
