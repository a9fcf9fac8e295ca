// dropout: the key, and the launch of the kernel.
#include "dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/scalar_tensor.h>

#include <mutex>

#include "covers.h"
#include "kernel.h"

namespace pytorch_ext {

bool covers_dropout(const Tensor& input, double p, bool, bool) {
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && p >= 0 && p <= 1;
}

uint64_t new_dropout_key(const std::optional<at::Generator>& given) {
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(given, at::detail::getDefaultCPUGenerator());
  std::lock_guard<std::mutex> lock(generator->mutex_);
  return generator->random64();
}

namespace {

// AOTInductor takes no operator without arguments, whence the generator.
Tensor dropout_key(const std::optional<at::Generator>& generator) {
  return at::scalar_tensor(static_cast<int64_t>(new_dropout_key(generator)), at::kLong);
}

Tensor dropout_forward(const Tensor& input, double p, const Tensor& key) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout: expected p between 0 and 1, got ", p);
  TORCH_CHECK(key.is_cpu() && key.scalar_type() == at::kLong && key.numel() == 1,
              "dropout: expected key to be one int64 on the CPU, got ", key.scalar_type(), " ", key.sizes(), " on ",
              key.device());
  Tensor x = input.contiguous(), output = new_like(input);
  Tensor y = output.is_contiguous() ? output : empty(input.sizes(), input);
  WITH_STORAGE_TYPE("dropout", input.scalar_type(), [&] {
    const auto word = static_cast<uint64_t>(*data<int64_t>(key));
    RUN_KERNEL(input, dropout<S>)(dropout_arguments<S>(x.numel(), data<S>(x), mutable_data<S>(y), p, word));
  });
  if (!y.is_same(output)) output.copy_(y);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) { m.impl("dropout_key", &dropout_key); }
KERNEL_LIBRARY(m) { m.impl("dropout_forward", &dropout_forward); }

}  // namespace pytorch_ext
