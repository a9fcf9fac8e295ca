// scaled_dot_product_attention: checks, memory, and where the matrices of every head lie.
#include "../cpu/scaled_dot_product_attention.h"

#include <ATen/ExpandUtils.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <cmath>

#include "batch.h"
#include "covers.h"
#include "kernel.h"
#include "reduce.h"

namespace pytorch_ext {
namespace {

using at::IntArrayRef;

constexpr const char* OP = "scaled_dot_product_attention";

// The batch of all heads, which query, key and value broadcast to; none where they do not fit.
std::optional<at::DimVector> heads_of(const Tensor& query, const Tensor& key, const Tensor& value) {
  const int64_t dims = query.dim();
  if (dims < 2 || key.dim() != dims || value.dim() != dims || dims > BatchOffsets::most_dims) return std::nullopt;
  if (key.size(-1) != query.size(-1) || key.size(-2) != value.size(-2)) return std::nullopt;
  if (!at::are_expandable(batch_of(query), batch_of(key))) return std::nullopt;
  const auto batch = at::infer_size_dimvector(batch_of(query), batch_of(key));
  if (!at::are_expandable(batch, batch_of(value))) return std::nullopt;
  return at::infer_size_dimvector(batch, batch_of(value));
}

bool fits(const Tensor& attn_mask, const Tensor& query, const Tensor& key, IntArrayRef batch) {
  return attn_mask.dim() >= 2 && attn_mask.numel() > 0 &&
         at::is_expandable_to(attn_mask.sizes(), with_matrix(batch, query.size(-2), key.size(-2)));
}

// Every argument as the kernel wants it; the offsets live as long as this does.
template <class S>
class Arguments {
 public:
  Arguments(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
            bool is_causal, std::optional<double> scale, IntArrayRef batch)
      : batch_(batch), heads_(c10::multiply_integers(batch)) {
    p = {heads_,
         query.size(-2),
         key.size(-2),
         query.size(-1),
         value.size(-1),
         heads<S>(query),
         heads<S>(key),
         heads<S>(value),
         {},
         {},
         is_causal,
         static_cast<S>(scale ? *scale : 1 / std::sqrt(static_cast<double>(query.size(-1))))};
    if (!attn_mask) return;
    const Tensor mask = attn_mask->expand(with_matrix(batch_of(*attn_mask), p.queries, p.keys));
    if (mask.scalar_type() == at::kBool)
      p.allowed = heads<unsigned char>(mask);
    else
      p.added = heads<S>(mask);
  }
  template <class T>
  Heads<T> heads(const Tensor& t) {
    offsets_.push_back(batch_offsets(t, batch_, heads_));
    return {{data<T>(t), t.stride(-2), t.stride(-1)}, data<int64_t>(offsets_.back())};
  }
  Attention<S> p;

 private:
  IntArrayRef batch_;
  int64_t heads_;
  std::vector<Tensor> offsets_;
};

at::DimVector check(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask) {
  check_same(OP, "key", key, query);
  check_same(OP, "value", value, query);
  TORCH_CHECK(query.scalar_type() == at::kFloat || query.scalar_type() == at::kDouble, OP,
              ": expected float32 or float64, got ", query.scalar_type());
  const auto batch = heads_of(query, key, value);
  TORCH_CHECK(batch, OP, ": expected query (..., L, E), key (..., S, E) and value (..., S, Ev), got ", query.sizes(),
              ", ", key.sizes(), " and ", value.sizes());
  TORCH_CHECK(query.numel() > 0 && key.numel() > 0 && value.numel() > 0, OP, ": expected tensors with elements, got ",
              query.sizes(), ", ", key.sizes(), " and ", value.sizes());
  if (attn_mask) {
    if (attn_mask->scalar_type() != at::kBool) check_same(OP, "attn_mask", *attn_mask, query);
    TORCH_CHECK(attn_mask->device() == query.device(), OP, ": expected attn_mask on ", query.device(), ", got ",
                attn_mask->device());
    TORCH_CHECK(fits(*attn_mask, query, key, *batch), OP, ": expected attn_mask to expand to ",
                IntArrayRef(with_matrix(*batch, query.size(-2), key.size(-2))), ", got ", attn_mask->sizes());
  }
  return *batch;
}

// Runs the body with S the storage type of the two dtypes that there are kernels for.
template <class Body>
void with_type(at::ScalarType dtype, Body&& body) {
  dtype == at::kFloat ? body(float()) : body(double());
}

Tensor attention_forward(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                         bool is_causal, std::optional<double> scale) {
  const auto batch = check(query, key, value, attn_mask);
  Tensor output = empty(with_matrix(batch, query.size(-2), value.size(-1)), query);
  with_type(query.scalar_type(), [&](auto type) {
    using S = decltype(type);
    Arguments<S> a(query, key, value, attn_mask, is_causal, scale, batch);
    RUN_KERNEL(query, scaled_dot_product_attention<S>)({a.p, mutable_data<S>(output)});
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const OptionalTensor& attn_mask,
                                                      bool is_causal, std::optional<double> scale,
                                                      std::array<bool, 3> mask) {
  const auto batch = check(query, key, value, attn_mask);
  check_same(OP, "grad", grad, query);
  const auto sizes = with_matrix(batch, query.size(-2), value.size(-1));
  TORCH_CHECK(grad.sizes() == IntArrayRef(sizes), OP, ": expected grad ", IntArrayRef(sizes), ", got ", grad.sizes());
  std::array<Tensor, 3> gradients;
  const std::array<const Tensor*, 3> of{&query, &key, &value};
  for (int i = 0; i < 3; i++)  // of what is broadcast, one for every head
    if (mask[i]) gradients[i] = empty(with_matrix(batch, of[i]->size(-2), of[i]->size(-1)), query);
  with_type(query.scalar_type(), [&](auto type) {
    using S = decltype(type);
    Arguments<S> a(query, key, value, attn_mask, is_causal, scale, batch);
    const auto g = a.template heads<S>(grad);
    RUN_KERNEL(query, scaled_dot_product_attention_gradient<S>)
    ({a.p, g, mutable_data<S>(gradients[0]), mutable_data<S>(gradients[1]), mutable_data<S>(gradients[2])});
  });
  for (int i = 0; i < 3; i++)
    if (mask[i]) gradients[i] = sum_to_size(gradients[i], of[i]->sizes());
  return {gradients[0], gradients[1], gradients[2]};
}

}  // namespace

bool covers_attention(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
                      bool is_causal, std::optional<double>) {
  const auto dtype = query.scalar_type();
  const auto device = query.device();
  if (!has_kernels(query) || !(dtype == at::kFloat || dtype == at::kDouble) || key.scalar_type() != dtype ||
      value.scalar_type() != dtype || key.device() != device || value.device() != device || !products_are_ieee(query) ||
      at::autocast::is_autocast_enabled(device.type()) || !query.numel() || !key.numel() || !value.numel())
    return false;
  const auto batch = heads_of(query, key, value);
  if (!batch || !attn_mask) return batch.has_value();
  const bool is_known = attn_mask->scalar_type() == at::kBool || attn_mask->scalar_type() == dtype;
  const bool is_constant = !attn_mask->requires_grad() || !at::GradMode::is_enabled();
  return !is_causal && attn_mask->device() == device && is_known && is_constant && fits(*attn_mask, query, key, *batch);
}

KERNEL_LIBRARY(m) {
  m.impl("scaled_dot_product_attention_forward", &attention_forward);
  m.impl("scaled_dot_product_attention_backward", &attention_backward);
}

}  // namespace pytorch_ext
