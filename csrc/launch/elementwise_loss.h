// Element-wise losses by the names of their operators.
#pragma once

#include <c10/util/Exception.h>

#include <string_view>

#include "../numerics/kinds.h"

namespace pytorch_ext {

inline ElementwiseLoss elementwise_loss_named(std::string_view name) {
  constexpr std::string_view names[] = {"mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"};
  for (int i = 0; i < 3; i++)
    if (name == names[i]) return static_cast<ElementwiseLoss>(i);
  TORCH_CHECK(false,
              "elementwise_loss: expected loss mse_loss, binary_cross_entropy or binary_cross_entropy_with_logits,"
              " got ",
              name);
}

}  // namespace pytorch_ext
