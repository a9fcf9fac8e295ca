// Activations by the names Python gives them.
#pragma once

#include <c10/util/Exception.h>

#include <optional>
#include <string_view>

#include "../numerics/kinds.h"

namespace pytorch_ext {

constexpr std::string_view ACTIVATION_NAMES[] = {"none", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"};

inline std::string_view activation_name(Activation kind) { return ACTIVATION_NAMES[static_cast<int>(kind)]; }

inline std::optional<Activation> find_activation(std::string_view name) {
  for (int i = 0; i < 7; i++)
    if (name == ACTIVATION_NAMES[i]) return static_cast<Activation>(i);
  return std::nullopt;
}

inline Activation activation_named(const char* op, std::string_view name) {
  auto activation = find_activation(name);
  TORCH_CHECK(activation, op, ": expected activation none, relu, sigmoid, tanh, gelu, gelu_tanh or silu, got ", name);
  return *activation;
}

}  // namespace pytorch_ext
