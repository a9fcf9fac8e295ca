// Losses whose forward pass also computes the gradients that the common backward pass asks for: those of
// `loss.backward()`, where the gradient of the loss is 1. The backward pass hands them out; where the gradient of the
// loss is another number, <op>_backward_into first writes the gradients for that one over them. On a device, which
// nobody waits for, that kernel looks itself, and touches nothing where it finds a 1.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

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

// A gradient that the forward pass left for the backward pass.
class InAdvance {
 public:
  void keep(at::Tensor gradient) {
    capture_ = capture_number(gradient);
    gradient_ = std::move(gradient);
  }

  // It, if there is one, once: who receives it owns it. Not where a graph records the forward pass without the backward
  // pass or the other way round: replayed alone, a backward pass would meet what its last replay left.
  at::Tensor take(const at::Tensor& grad) {
    if (!gradient_.defined() || !holds_numbers(grad)) return {};
    if (grad.is_cuda() && capture_number(grad) != capture_) return {};
    return std::move(gradient_);
  }

 private:
  at::Tensor gradient_;
  int64_t capture_ = 0;
};

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
