// Derivatives of a derivative: <op>_backward is itself differentiable. Its value is always the fused kernel's; its own
// derivative is taken of the same formula composed of stock operators, which can be differentiated any number of times.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>

namespace pytorch_ext {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether autograd has to record: an argument is a Tensor or an optional one.
inline bool requires_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool requires_grad(const std::optional<at::Tensor>& t) { return t && requires_grad(*t); }
template <class... T>
bool any_requires_grad(const T&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// What a backward pass asks of a factor whose cofactor has no gradient: its sizes. Its numbers may be changed in place.
inline at::Tensor to_save(const at::Tensor& factor, const at::Tensor& cofactor) {
  return cofactor.requires_grad() ? factor : factor.variable_data();
}

// The dtype that a composition computes in: a stock operator rounds its result to 16 bits, which a kernel that does the
// same in one pass does not. Products sum in 32 bits anyway, and are left to the hardware's products of 16.
enum class Composed { in_float32, in_own_dtype };

inline at::Tensor widened(const at::Tensor& t, Composed dtype) {
  const bool narrow = t.defined() && (t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf);
  return narrow && dtype == Composed::in_float32 ? t.to(at::kFloat) : t;
}

// Vector-Jacobian product of compose(inputs) with `grads`; undefined inputs stay undefined, undefined grads are zero.
// The inputs are aliased, so that one of them being computed from another does not add to its gradient.
template <class Compose>
variable_list vjp_of_composition(const variable_list& inputs, const variable_list& grads, Compose&& compose,
                                 Composed dtype = Composed::in_float32) {
  const bool create_graph = at::GradMode::is_enabled();
  at::AutoGradMode with_graph(true);
  variable_list aliases, wanted;
  for (const auto& t : inputs) {
    bool differentiable = requires_grad(t);
    at::Tensor alias = !differentiable ? t : create_graph ? t.view_as(t) : t.detach().requires_grad_();
    if (differentiable) wanted.push_back(alias);
    aliases.push_back(widened(alias, dtype));
  }
  variable_list outputs = compose(aliases), used_outputs, used_grads;
  for (size_t i = 0; i < outputs.size(); i++) {
    if (!outputs[i].defined() || !grads[i].defined() || !outputs[i].requires_grad()) continue;
    used_outputs.push_back(outputs[i]);
    used_grads.push_back(grads[i].to(outputs[i].scalar_type()));
  }
  variable_list found(wanted.size()), result;
  if (!used_outputs.empty() && !wanted.empty())
    found = torch::autograd::grad(used_outputs, wanted, used_grads, /*retain_graph=*/create_graph, create_graph,
                                  /*allow_unused=*/true);
  size_t next = 0;
  for (const auto& t : inputs) result.push_back(requires_grad(t) ? found[next++] : at::Tensor());
  return result;
}

// A Function's outputs must be defined. Its forward returns those that the mask chooses; at_their_places puts them, or
// their gradients, where they belong.
template <size_t N>
variable_list chosen(const std::array<bool, N>& mask, const std::array<at::Tensor, N>& outputs) {
  variable_list result;
  for (size_t i = 0; i < N; i++)
    if (mask[i]) result.push_back(outputs[i]);
  return result;
}
template <size_t N>
variable_list at_their_places(const std::array<bool, N>& mask, const variable_list& chosen) {
  variable_list result(N);
  size_t next = 0;
  for (size_t i = 0; i < N; i++)
    if (mask[i]) result[i] = chosen[next++];
  return result;
}

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) { return t ? *t : at::Tensor(); }
inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace pytorch_ext
