// mse_loss, binary_cross_entropy and binary_cross_entropy_with_logits: memory and checks; the arithmetic is in the
// kernel.
#include "elementwise_loss.h"

#include <ATen/ExpandUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/logical_and.h>

#include "covers.h"
#include "reduce.h"

namespace pytorch_ext {
namespace {

// Whether `t` has the input's dtype and device, or will have it once autocast has cast both.
bool matches(const Tensor& t, const Tensor& input) {
  auto a = t.scalar_type(), b = input.scalar_type();
  if (a == b) return t.device() == input.device();
  return at::autocast::is_autocast_enabled(input.device().type()) && is_kernel_dtype(a) && a != at::kDouble &&
         b != at::kDouble && t.device() == input.device();
}

bool covers_pair(const Tensor& input, const Tensor& target, int64_t reduction) {
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && matches(target, input) && reduction >= 0 &&
         reduction <= 2;
}

// A weight is a constant to the kernels; stock differentiates mse_loss by it, and refuses to do so elsewhere.
bool covers_weight(const OptionalTensor& weight, const Tensor& input) {
  return !weight ||
         (matches(*weight, input) && !weight->requires_grad() && at::is_expandable_to(weight->sizes(), input.sizes()));
}

bool covers_mse_weight(const OptionalTensor& weight, const Tensor& input) {
  return covers_weight(weight, input) && (!weight || weight->sizes() == input.sizes());
}

}  // namespace

bool covers_mse_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction) {
  return covers_pair(input, target, reduction) && input.sizes() == target.sizes() && covers_mse_weight(weight, input);
}

bool covers_mse_loss_broadcast(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction) {
  return covers_pair(input, target, reduction) && at::are_expandable(input.sizes(), target.sizes()) &&
         covers_mse_weight(weight, input);
}

bool covers_binary_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                 int64_t reduction) {
  return covers_pair(input, target, reduction) && input.sizes() == target.sizes() && covers_weight(weight, input);
}

bool covers_binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                             const OptionalTensor& pos_weight, int64_t reduction) {
  return covers_binary_cross_entropy(input, target, weight, reduction) && covers_weight(pos_weight, input);
}

namespace {

Tensor spread(const Tensor& t, at::IntArrayRef sizes) {
  return t.sizes() == sizes ? t.contiguous() : t.expand(sizes).contiguous();
}

OptionalTensor spread(const char* name, const OptionalTensor& t, const Tensor& input, at::IntArrayRef sizes) {
  if (!t) return t;
  check_same("elementwise_loss", name, *t, input);
  TORCH_CHECK(at::is_expandable_to(t->sizes(), sizes), "elementwise_loss: expected ", name, " that broadcasts to ",
              sizes, ", got ", t->sizes());
  return spread(*t, sizes);
}

}  // namespace

ElementwiseOperands elementwise_operands(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                         const OptionalTensor& pos_weight, ElementwiseLoss loss, int64_t reduction) {
  check_same("elementwise_loss", "target", target, input);
  TORCH_CHECK(reduction >= 0 && reduction <= 2, "elementwise_loss: expected reduction 0, 1 or 2, got ", reduction);
  ElementwiseOperands o;
  const bool broadcasts = loss == ElementwiseLoss::mse_loss;
  TORCH_CHECK(input.sizes() == target.sizes() || (broadcasts && at::are_expandable(input.sizes(), target.sizes())),
              "elementwise_loss: expected target ", input.sizes(), ", got ", target.sizes());
  o.sizes = at::infer_size_dimvector(input.sizes(), target.sizes());
  o.input = spread(input, o.sizes);
  o.target = spread(target, o.sizes);
  o.weight = spread("weight", weight, input, o.sizes);
  o.pos_weight = spread("pos_weight", pos_weight, input, o.sizes);
  // Stock's weighted mean of mse_loss divides by the sum of the weights, the others' by the number of elements.
  if (weight && broadcasts && reduction == at::Reduction::Mean) o.mean_weight = weight->contiguous();
  return o;
}

namespace {

void check_probability(const char* name, const Tensor& t) {
  Tensor inside = at::logical_and(t.ge(0), t.le(1));
  if (inside.all().item<bool>()) return;
  TORCH_CHECK(false, "binary_cross_entropy: expected ", name, " between 0 and 1, got ",
              t.masked_select(inside.logical_not())[0].item<double>());
}

}  // namespace

void check_probabilities(const Tensor& input, const Tensor& target) {
  check_probability("input", input);
  check_probability("target", target);
}

namespace {

at::IntArrayRef value_sizes(const ElementwiseOperands& o, int64_t reduction) {
  return reduction == at::Reduction::None ? at::IntArrayRef(o.sizes) : at::IntArrayRef();
}

std::tuple<Tensor, Tensor, Tensor> elementwise_loss_forward(const Tensor& input, const Tensor& target,
                                                            const OptionalTensor& weight,
                                                            const OptionalTensor& pos_weight, std::string_view loss,
                                                            int64_t reduction, std::array<bool, 2> mask) {
  const ElementwiseLoss kind = elementwise_loss_named(loss);
  const ElementwiseOperands o = elementwise_operands(input, target, weight, pos_weight, kind, reduction);
  Tensor value = empty(value_sizes(o, reduction), input);
  Tensor dinput, dtarget;
  if (mask[0]) dinput = empty(o.sizes, input);
  if (mask[1]) dtarget = empty(o.sizes, input);
  bool valid = true;
  WITH_STORAGE_TYPE("elementwise_loss", input.scalar_type(), [&] {
    auto p = o.arrays<S>(kind, reduction);
    p.value = mutable_data<S>(value);
    p.dinput = mutable_data<S>(dinput);
    p.dtarget = mutable_data<S>(dtarget);
    valid = RUN_KERNEL(input, elementwise_loss<S>)(p);
  });
  if (!valid) check_probabilities(input, target);
  if (mask[0]) dinput = sum_to_size(dinput, input.sizes());
  if (mask[1]) dtarget = sum_to_size(dtarget, target.sizes());
  return {value, dinput, dtarget};
}

Tensor elementwise_loss_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                  const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  return std::get<0>(elementwise_loss_forward(input, target, weight, pos_weight, loss, reduction, {false, false}));
}

void check_gradient(const char* op, const Tensor& grad, const Tensor& input, at::IntArrayRef sizes) {
  check_same(op, "grad", grad, input);
  TORCH_CHECK(grad.sizes() == sizes, op, ": expected grad ", sizes, ", got ", grad.sizes());
}

// dinput and dtarget where they are defined.
void write_gradients(const ElementwiseOperands& o, const Tensor& grad, ElementwiseLoss loss, int64_t reduction,
                     const Tensor& dinput, const Tensor& dtarget, bool in_advance) {
  WITH_STORAGE_TYPE("elementwise_loss_backward", grad.scalar_type(), [&] {
    auto p = o.arrays<S>(loss, reduction);
    p.grad = data<S>(grad);
    p.dinput = mutable_data<S>(dinput);
    p.dtarget = mutable_data<S>(dtarget);
    p.in_advance = in_advance;
    RUN_KERNEL(grad, elementwise_loss<S>)(p);
  });
}

std::tuple<Tensor, Tensor> elementwise_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                     const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                                     std::string_view loss, int64_t reduction,
                                                     std::array<bool, 2> mask) {
  const ElementwiseLoss kind = elementwise_loss_named(loss);
  const ElementwiseOperands o = elementwise_operands(input, target, weight, pos_weight, kind, reduction);
  check_gradient("elementwise_loss_backward", grad, input, value_sizes(o, reduction));
  Tensor dinput, dtarget;
  if (mask[0]) dinput = empty(o.sizes, input);
  if (mask[1]) dtarget = empty(o.sizes, input);
  write_gradients(o, grad.contiguous(), kind, reduction, dinput, dtarget, /*in_advance=*/false);
  if (mask[0]) dinput = sum_to_size(dinput, input.sizes());
  if (mask[1]) dtarget = sum_to_size(dtarget, target.sizes());
  return {dinput, dtarget};
}

void elementwise_loss_backward_into(const Tensor& grad, const OptionalTensor& dinput, const OptionalTensor& dtarget,
                                    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                    const OptionalTensor& pos_weight, std::string_view loss, int64_t reduction) {
  const char* op = "elementwise_loss_backward_into";
  const ElementwiseLoss kind = elementwise_loss_named(loss);
  const ElementwiseOperands o = elementwise_operands(input, target, weight, pos_weight, kind, reduction);
  TORCH_CHECK(reduction != at::Reduction::None, op, ": expected reduction 1 or 2, got 0");
  check_gradient(op, grad, input, {});
  auto check_array = [&](const char* name, const OptionalTensor& t) {
    if (!t) return;
    check_same(op, name, *t, input);
    TORCH_CHECK(t->sizes() == o.sizes && t->is_contiguous(), op, ": expected ", name, " ", at::IntArrayRef(o.sizes),
                ", contiguous, got ", t->sizes(), " of strides ", t->strides());
  };
  check_array("dinput", dinput);
  check_array("dtarget", dtarget);
  write_gradients(o, grad, kind, reduction, dinput.value_or(Tensor()), dtarget.value_or(Tensor()), /*in_advance=*/true);
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("elementwise_loss_inference", &elementwise_loss_inference);
  m.impl("elementwise_loss_forward", &elementwise_loss_forward);
  m.impl("elementwise_loss_backward", &elementwise_loss_backward);
  m.impl("elementwise_loss_backward_into", &elementwise_loss_backward_into);
}

}  // namespace pytorch_ext
