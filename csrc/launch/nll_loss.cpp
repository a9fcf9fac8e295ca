// nll_loss: memory and checks, those of cross_entropy's class targets among them; the arithmetic is in the kernels.

#include "class_targets.h"
#include "covers.h"
#include "kernel.h"

namespace pytorch_ext {

bool covers_nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t) {
  return covers_classification(input, weight, reduction) && target.device() == input.device() &&
         is_index_dtype(input, target) && has_index_per_row(input, target);
}

int64_t count_rows(const char* op, const int64_t* indices, int64_t rows, int64_t classes, int64_t ignore_index) {
  int64_t ignored = 0, outside = 0;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t t = indices[i];
    ignored += t == ignore_index;
    outside += t != ignore_index && static_cast<uint64_t>(t) >= static_cast<uint64_t>(classes);
  }
  if (outside == 0) return rows - ignored;
  int64_t i = 0;
  while (indices[i] == ignore_index || static_cast<uint64_t>(indices[i]) < static_cast<uint64_t>(classes)) i++;
  TORCH_CHECK_INDEX(false, op, ": expected class indices in [0, ", classes, ") or ignore_index ", ignore_index,
                    ", got ", indices[i]);
}

namespace {

// Whether the classes are contiguous although the shape puts them second of more than two dimensions.
bool has_classes_last(const Tensor& t) { return t.dim() > 2 && !t.is_contiguous() && t.movedim(1, -1).is_contiguous(); }

}  // namespace

ClassOperands class_operands(const char* op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                             int64_t reduction, int64_t ignore_index) {
  TORCH_CHECK(input.dim() >= 1, op, ": expected input (N, C, ...) or (C,), got ", input.sizes());
  TORCH_CHECK(reduction >= 0 && reduction <= 2, op, ": expected reduction 0, 1 or 2, got ", reduction);
  TORCH_CHECK(target.device() == input.device(), op, ": expected target on ", input.device(), ", got ",
              target.device());
  ClassOperands o;
  o.classes = input.size(class_dim(input));
  o.outer = input.dim() == 1 ? 1 : input.size(0);
  o.inner = 1;
  for (int64_t d = 2; d < input.dim(); d++) o.inner *= input.size(d);
  o.classes_last = has_classes_last(input);
  const bool rows_contiguous = input.dim() == 2 && input.stride(1) == 1;
  o.input = o.classes_last || rows_contiguous ? input : input.contiguous();
  if (weight) {
    check_same(op, "weight", *weight, input);
    TORCH_CHECK(weight->dim() == 1 && weight->size(0) == o.classes, op, ": expected weight (", o.classes, ",), got ",
                weight->sizes());
    o.weight = weight->contiguous();
  }
  if (at::isFloatingType(target.scalar_type())) {
    check_same(op, "target", target, input);
    TORCH_CHECK(target.sizes() == input.sizes(), op, ": expected target ", input.sizes(), ", got ", target.sizes());
    o.target = o.classes_last ? target.movedim(1, -1).contiguous() : target.contiguous();
    o.counted_rows = o.outer * o.inner;
  } else {
    TORCH_CHECK(is_index_dtype(input, target) && has_index_per_row(input, target), op,
                ": expected one class index (int64) per row of input ", input.sizes(), ", got target ", target.sizes(),
                " of ", target.scalar_type());
    o.target = (target.scalar_type() == at::kLong ? target : target.to(at::kLong)).contiguous();
    // On a device the kernels look at the indices themselves, as nothing here may wait for it.
    o.counted_rows = !input.is_cpu() ? 0
                                     : count_rows(op, o.target.const_data_ptr<int64_t>(), o.outer * o.inner, o.classes,
                                                  ignore_index);
  }
  if (o.classes_last || o.inner == 1) {
    o.outer *= o.inner;
    o.inner = 1;
  }
  return o;
}

Tensor ClassOperands::new_gradient(const Tensor& of) const {
  return classes_last ? new_like(input) : empty(of.sizes(), of);
}

at::DimVector loss_sizes(const Tensor& input, const Tensor& target, int64_t reduction) {
  if (reduction != at::Reduction::None || input.dim() == 1) return {};
  at::DimVector sizes(target.sizes());
  if (at::isFloatingType(target.scalar_type())) sizes.erase(sizes.begin() + 1);
  return sizes;
}

Tensor loss_gradient(const char* op, const Tensor& grad, const Tensor& input, const Tensor& target, int64_t reduction) {
  check_same(op, "grad", grad, input);
  const auto sizes = loss_sizes(input, target, reduction);
  TORCH_CHECK(grad.sizes() == sizes, op, ": expected grad ", at::IntArrayRef(sizes), ", got ", grad.sizes());
  return grad.contiguous();
}

namespace {

Tensor nll_loss_forward(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                        int64_t ignore_index) {
  TORCH_CHECK(!at::isFloatingType(target.scalar_type()), "nll_loss: expected class indices, got ",
              target.scalar_type());
  const ClassOperands o = class_operands("nll_loss", input, target, weight, reduction, ignore_index);
  Tensor loss = empty(loss_sizes(input, target, reduction), input);
  WITH_STORAGE_TYPE("nll_loss", input.scalar_type(), [&] {
    auto p = o.loss<S>(reduction, ignore_index);
    p.loss = mutable_data<S>(loss);
    RUN_KERNEL(input, nll_loss<S>)(p);
  });
  return loss;
}

Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index) {
  TORCH_CHECK(!at::isFloatingType(target.scalar_type()), "nll_loss: expected class indices, got ",
              target.scalar_type());
  const ClassOperands o = class_operands("nll_loss_backward", input, target, weight, reduction, ignore_index);
  const Tensor g = loss_gradient("nll_loss_backward", grad, input, target, reduction);
  Tensor dinput = o.new_gradient(input).zero_();
  WITH_STORAGE_TYPE("nll_loss_backward", input.scalar_type(), [&] {
    auto p = o.loss<S>(reduction, ignore_index);
    p.grad = data<S>(g);
    p.dinput = mutable_data<S>(dinput);
    RUN_KERNEL(input, nll_loss<S>)(p);
  });
  return dinput;
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("nll_loss_forward", &nll_loss_forward);
  m.impl("nll_loss_backward", &nll_loss_backward);
}

}  // namespace pytorch_ext
