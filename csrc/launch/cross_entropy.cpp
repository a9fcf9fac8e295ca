// cross_entropy: memory and checks; the arithmetic is in the kernel.

#include "class_targets.h"
#include "covers.h"
#include "kernel.h"

namespace pytorch_ext {

bool covers_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                          int64_t ignore_index, double label_smoothing) {
  if (!covers_classification(input, weight, reduction) || target.device() != input.device() || label_smoothing > 1)
    return false;
  if (input.sizes() == target.sizes())
    return will_match(target, input) && ignore_index < 0 && input.size(class_dim(input)) > 0;
  if (!is_index_dtype(input, target) || !has_index_per_row(input, target)) return false;
  // Smoothed, stock refuses a target of one element for an input (C,), and with a weight uint8.
  return !(label_smoothing > 0) ||
         ((input.dim() > 1 || target.dim() == 0) && (!weight || target.scalar_type() == at::kLong));
}

namespace {

std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& input, const Tensor& target,
                                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing, bool with_gradient) {
  const ClassOperands o = class_operands("cross_entropy", input, target, weight, reduction, ignore_index);
  Tensor loss = empty(loss_sizes(input, target, reduction), input), dinput;
  if (with_gradient) dinput = o.new_gradient(input);
  WITH_STORAGE_TYPE("cross_entropy", input.scalar_type(), [&] {
    auto p = cross_entropy_arguments<S>(o, reduction, ignore_index, label_smoothing);
    p.loss = mutable_data<S>(loss);
    p.dinput = mutable_data<S>(dinput);
    RUN_KERNEL(input, cross_entropy<S>)(p);
  });
  return {loss, dinput};
}

Tensor cross_entropy_inference(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, int64_t ignore_index, double label_smoothing) {
  return std::get<0>(cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, false));
}

// dinput and dprobabilities where they are defined.
void write_gradients(const ClassOperands& o, const Tensor& grad, int64_t reduction, int64_t ignore_index,
                     double label_smoothing, const Tensor& dinput, const Tensor& dprobabilities, bool in_advance) {
  if (!dinput.defined() && !dprobabilities.defined()) return;
  WITH_STORAGE_TYPE("cross_entropy_backward", grad.scalar_type(), [&] {
    auto p = cross_entropy_arguments<S>(o, reduction, ignore_index, label_smoothing);
    p.grad = data<S>(grad);
    p.dinput = mutable_data<S>(dinput);
    p.dprobabilities = mutable_data<S>(dprobabilities);
    p.in_advance = in_advance;
    RUN_KERNEL(grad, cross_entropy<S>)(p);
  });
}

std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                                  double label_smoothing, std::array<bool, 2> mask) {
  const ClassOperands o = class_operands("cross_entropy_backward", input, target, weight, reduction, ignore_index);
  const Tensor g = loss_gradient("cross_entropy_backward", grad, input, target, reduction);
  const bool probabilities = at::isFloatingType(target.scalar_type());
  Tensor dinput, dtarget, in_rows;
  if (mask[0]) dinput = o.new_gradient(input);
  if (mask[1] && probabilities) {
    dtarget = in_rows = empty(o.target.sizes(), target);
    if (o.classes_last) dtarget = in_rows.movedim(-1, 1);
  }
  write_gradients(o, g, reduction, ignore_index, label_smoothing, dinput, in_rows, /*in_advance=*/false);
  return {dinput, dtarget};
}

void cross_entropy_backward_into(const Tensor& grad, const Tensor& dinput, const Tensor& input, const Tensor& target,
                                 const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                 double label_smoothing) {
  const char* op = "cross_entropy_backward_into";
  const ClassOperands o = class_operands(op, input, target, weight, reduction, ignore_index);
  const Tensor g = loss_gradient(op, grad, input, target, reduction);
  TORCH_CHECK(reduction != at::Reduction::None, op, ": expected reduction 1 or 2, got 0");
  check_same(op, "dinput", dinput, input);
  TORCH_CHECK(o.takes_gradient(dinput), op, ": expected dinput as cross_entropy_forward gives it, ", input.sizes(),
              ", got ", dinput.sizes(), " of strides ", dinput.strides());
  write_gradients(o, g, reduction, ignore_index, label_smoothing, dinput, Tensor(), /*in_advance=*/true);
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("cross_entropy_inference", &cross_entropy_inference);
  m.impl("cross_entropy_forward", &cross_entropy_forward);
  m.impl("cross_entropy_backward", &cross_entropy_backward);
  m.impl("cross_entropy_backward_into", &cross_entropy_backward_into);
}

}  // namespace pytorch_ext
