// Operands of nll_loss and cross_entropy: an input (N, C, d1...), (N, C) or (C,), and a target with one class index for
// every distribution over the C classes, or with a probability for every element.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Reduction.h>

#include "../cpu/cross_entropy.h"
#include "kernel.h"

namespace pytorch_ext {

inline int64_t class_dim(const Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// Whether the target holds one class index for every row of the input.
inline bool has_index_per_row(const Tensor& input, const Tensor& target) {
  if (input.dim() == 1) return target.dim() <= 1 && target.numel() == 1;
  if (target.dim() + 1 != input.dim() || target.size(0) != input.size(0)) return false;
  return input.sizes().slice(2) == target.sizes().slice(1);
}

// int64; stock takes uint8 as well where the input has at most two dimensions.
inline bool is_index_dtype(const Tensor& input, const Tensor& target) {
  return target.scalar_type() == at::kLong || (target.scalar_type() == at::kByte && input.dim() <= 2);
}

// Whether `t` has the input's dtype and device, or will have it once autocast has made both float32.
inline bool will_match(const Tensor& t, const Tensor& input) {
  const auto a = t.scalar_type(), b = input.scalar_type();
  return t.device() == input.device() && (a == b || (is_kernel_dtype(a) && a != at::kDouble && b != at::kDouble &&
                                                     at::autocast::is_autocast_enabled(input.device().type())));
}

// What nll_loss and cross_entropy ask alike. A weight is a constant to the kernels.
inline bool covers_classification(const Tensor& input, const OptionalTensor& weight, int64_t reduction) {
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && input.dim() >= 1 && reduction >= 0 &&
         reduction <= 2 &&
         (!weight || (will_match(*weight, input) && weight->dim() == 1 &&
                      weight->size(0) == input.size(class_dim(input)) && !weight->requires_grad()));
}

// The operands as the kernels read them; they live as long as the kernels run.
struct ClassOperands {
  Tensor input, target;
  OptionalTensor weight;
  int64_t outer, classes, inner, counted_rows;
  bool classes_last;  // of more than two dimensions, yet with the classes contiguous

  template <class S>
  ClassificationLoss<S> loss(int64_t reduction, int64_t ignore_index) const {
    ClassificationLoss<S> p{outer, classes, inner, data<S>(input),
                            input.dim() == 2 ? input.stride(0) : classes * inner};
    if (target.scalar_type() == at::kLong)
      p.indices = target.const_data_ptr<int64_t>();
    else
      p.probabilities = data<S>(target);
    p.ignore_index = ignore_index;
    p.counted_rows = counted_rows;
    p.weight = data<S>(weight);
    p.reduction = static_cast<Reduction>(reduction);
    return p;
  }

  // An uninitialised gradient of the input, and whether a tensor is one.
  Tensor new_gradient(const Tensor& of) const;
  bool takes_gradient(const Tensor& t) const {
    return t.sizes() == input.sizes() && (classes_last ? t.strides() == input.strides() : t.is_contiguous());
  }
};

// What cross_entropy's kernel takes of them.
template <class S>
ClassificationLoss<S> cross_entropy_arguments(const ClassOperands& o, int64_t reduction, int64_t ignore_index,
                                              double label_smoothing) {
  auto p = o.loss<S>(reduction, ignore_index);
  p.smoothed = label_smoothing > 0;
  if (p.smoothed) {
    using T = compute_t<S>;
    const double spread = label_smoothing / static_cast<double>(o.classes);
    p.kept = static_cast<T>(1 - label_smoothing);
    p.spread = static_cast<T>(spread);
    p.on_target = static_cast<T>(1 - label_smoothing + spread);
  }
  return p;
}

// Raises where the operands do not fit, IndexError where a class index is out of range.
ClassOperands class_operands(const char* op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                             int64_t reduction, int64_t ignore_index);

// How many rows are not ignored; IndexError where a class index is out of range.
int64_t count_rows(const char* op, const int64_t* indices, int64_t rows, int64_t classes, int64_t ignore_index);

// The loss of every row where reduction is none, else one number.
at::DimVector loss_sizes(const Tensor& input, const Tensor& target, int64_t reduction);

// The loss's gradient, checked.
Tensor loss_gradient(const char* op, const Tensor& grad, const Tensor& input, const Tensor& target, int64_t reduction);

}  // namespace pytorch_ext
