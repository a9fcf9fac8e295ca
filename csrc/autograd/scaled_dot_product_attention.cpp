#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "../ops.h"
#include "composition.h"
#include "node.h"

namespace pytorch_ext {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

namespace {

// The weights in stock operators; a hidden row's are 0.
Tensor composed_weights(const Tensor& scaled, const Tensor& key, const OptionalTensor& attn_mask, bool is_causal) {
  Tensor scores = at::matmul(scaled, key.mT());
  const double nothing = -std::numeric_limits<double>::infinity();
  if (is_causal) {
    const Tensor seen =
        at::ones_symint({scores.sym_size(-2), scores.sym_size(-1)}, scores.options().dtype(at::kBool)).tril();
    return at::softmax(scores.masked_fill(seen.logical_not(), nothing), -1);
  }
  if (!attn_mask) return at::softmax(scores, -1);
  scores = attn_mask->scalar_type() == at::kBool ? scores.masked_fill(attn_mask->logical_not(), nothing)
                                                 : scores + *attn_mask;
  const Tensor hidden = (scores == nothing).all(-1, /*keepdim=*/true);
  return at::softmax(scores.masked_fill(hidden, 0), -1).masked_fill(hidden, 0);
}

struct Options {
  OptionalTensor attn_mask;
  bool is_causal;
  std::optional<double> scale;
  double factor(const Tensor& query) const {
    return scale ? *scale : 1 / std::sqrt(static_cast<double>(query.size(-1)));
  }
};

void keep(AutogradContext* ctx, const variable_list& tensors, const Options& o) {
  variable_list saved = tensors;
  saved.push_back(or_undefined(o.attn_mask));
  ctx->save_for_backward(saved);
  ctx->saved_data["is_causal"] = o.is_causal;
  ctx->saved_data["scale"] = o.scale;
}
Options kept(AutogradContext* ctx, const variable_list& saved) {
  return {or_none(saved.back()), ctx->saved_data["is_causal"].toBool(), ctx->saved_data["scale"].toOptional<double>()};
}

class AttentionBackwardFunction : public torch::autograd::Function<AttentionBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& attn_mask, bool is_causal,
                               std::optional<double> scale, std::array<bool, 3> mask) {
    at::AutoDispatchBelowADInplaceOrView below;
    keep(ctx, {grad, query, key, value}, {attn_mask, is_causal, scale});
    ctx->saved_data["mask"] = mask;
    auto [dq, dk, dv] =
        ops::scaled_dot_product_attention_backward(grad, query, key, value, attn_mask, is_causal, scale, mask);
    return chosen(mask, {dq, dk, dv});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& chosen_grads) {
    const auto grads = at_their_places(ctx->saved_data["mask"].to<std::array<bool, 3>>(), chosen_grads);
    variable_list saved = ctx->get_saved_variables();
    const Options o = kept(ctx, saved);
    saved.pop_back();
    auto found = vjp_of_composition(saved, grads, [&](const variable_list& t) -> variable_list {
      const Tensor &g = t[0], &q = t[1], &k = t[2], &v = t[3];
      const Tensor scaled = q * o.factor(q), weights = composed_weights(scaled, k, o.attn_mask, o.is_causal);
      const Tensor dweights = at::matmul(g, v.mT());
      const Tensor dscores = weights * (dweights - (weights * dweights).sum(-1, /*keepdim=*/true));
      return {(at::matmul(dscores, k) * o.factor(q)).sum_to_size_symint(q.sym_sizes()),
              at::matmul(dscores.mT(), scaled).sum_to_size_symint(k.sym_sizes()),
              at::matmul(weights.mT(), g).sum_to_size_symint(v.sym_sizes())};
    });
    return {found[0], found[1], found[2], found[3], {}, {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const OptionalTensor& attn_mask,
                                                      bool is_causal, std::optional<double> scale,
                                                      std::array<bool, 3> mask) {
  if (!any_requires_grad(grad, query, key, value)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::scaled_dot_product_attention_backward(grad, query, key, value, attn_mask, is_causal, scale, mask);
  }
  auto found = at_their_places(
      mask, AttentionBackwardFunction::apply(grad, query, key, value, attn_mask, is_causal, scale, mask));
  return {found[0], found[1], found[2]};
}

struct AttentionGradients {
  static constexpr const char* name = "ScaledDotProductAttentionBackward";
  static constexpr size_t inputs = 3, saved = 4;
  bool is_causal;
  std::optional<double> scale;

  template <class Visit>
  void each(Visit&& visit) const {
    visit(is_causal), visit(scale);
  }

  std::array<Tensor, 3> operator()(const Tensor& grad, std::array<Tensor, 4>& tensors, const Needs& needs) const {
    const auto& [query, key, value, attn_mask] = tensors;
    auto [dq, dk, dv] = ops::scaled_dot_product_attention_backward(grad, query, key, value, or_none(attn_mask),
                                                                   is_causal, scale, {needs[0], needs[1], needs[2]});
    return {dq, dk, dv};
  }
};

Tensor attention_below(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                       bool is_causal, std::optional<double> scale) {
  return ops::scaled_dot_product_attention_forward(query, key, value, attn_mask, is_causal, scale);
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                 bool is_causal, std::optional<double> scale) {
  Tensor output = below_autograd([&] { return attention_below(query, key, value, attn_mask, is_causal, scale); });
  if (!any_requires_grad(query, key, value)) return output;
  return recorded(output, AttentionGradients{is_causal, scale}, {query, key, value},
                  {query, key, value, or_undefined(attn_mask)});
}

}  // namespace
}  // namespace pytorch_ext

TORCH_LIBRARY_IMPL(pytorch_ext, Autograd, m) {
  m.impl("scaled_dot_product_attention", &pytorch_ext::attention);
  m.impl("scaled_dot_product_attention_backward", &pytorch_ext::attention_backward);
}
TORCH_LIBRARY_IMPL(pytorch_ext, CompositeExplicitAutograd, m) {
  m.impl("scaled_dot_product_attention", &pytorch_ext::attention_below);
}
