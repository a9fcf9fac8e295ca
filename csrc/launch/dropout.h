// What a probability means in words of 32 bits, and where keys come from.
#pragma once

#include "../cpu/dropout.h"

#include <ATen/core/Generator.h>

#include <cmath>
#include <optional>

namespace pytorch_ext {

// From torch's default generator, which torch.manual_seed governs, unless another one is given.
uint64_t new_dropout_key(const std::optional<at::Generator>& given = std::nullopt);

template <class S>
Dropout<S> dropout_arguments(int64_t n, const S* x, S* y, double p, uint64_t key) {
  using T = compute_t<S>;
  Dropout<S> d{n, x, y, key, 0, T(0)};
  const double threshold = std::nearbyint(p * 0x1p32);
  if (threshold < 0x1p32) d.threshold = static_cast<uint32_t>(threshold), d.scale = static_cast<T>(1 / (1 - p));
  return d;
}

}  // namespace pytorch_ext
