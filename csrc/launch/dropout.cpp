// dropout: the key, what p means in words of 32 bits, and the launch of the kernel.
#include "../cpu/dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <mutex>

#include "covers.h"
#include "kernel.h"

namespace pytorch_ext {

bool covers_dropout(const Tensor& input, double p, bool, bool) {
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && p >= 0 && p <= 1;
}

namespace {

// From torch's default generator, so that torch.manual_seed governs it.
Tensor dropout_key() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  std::lock_guard<std::mutex> lock(generator->mutex_);
  return at::scalar_tensor(static_cast<int64_t>(generator->random64()), at::kLong);
}

Tensor dropout_forward(const Tensor& input, double p, const Tensor& key) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout: expected p between 0 and 1, got ", p);
  TORCH_CHECK(key.is_cpu() && key.scalar_type() == at::kLong && key.numel() == 1,
              "dropout: expected key to be one int64 on the CPU, got ", key.scalar_type(), " ", key.sizes(), " on ",
              key.device());
  const double threshold = std::nearbyint(p * 0x1p32);
  const bool drops_all = threshold >= 0x1p32;
  Tensor x = input.contiguous(), output = at::empty_like(input);
  Tensor y = output.is_contiguous() ? output : empty(input.sizes(), input);
  WITH_STORAGE_TYPE("dropout", input.scalar_type(), [&] {
    using T = compute_t<S>;
    Dropout<S> d{x.numel(), data<S>(x), mutable_data<S>(y), static_cast<uint64_t>(*data<int64_t>(key)), 0, T(0)};
    if (!drops_all) d.threshold = static_cast<uint32_t>(threshold), d.scale = static_cast<T>(1 / (1 - p));
    RUN_KERNEL(input, dropout<S>)(d);
  });
  if (!y.is_same(output)) output.copy_(y);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("dropout_key", &dropout_key); }
KERNEL_LIBRARY(m) { m.impl("dropout_forward", &dropout_forward); }

}  // namespace pytorch_ext
