// Second derivatives of nll_loss and cross_entropy: the target as a distribution over the classes, in stock operators.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/Reduction.h>

namespace pytorch_ext {

inline int64_t class_dimension(const at::Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// One number per class, along the input's class dimension.
inline at::Tensor along_classes(const at::Tensor& weight, const at::Tensor& input) {
  std::vector<int64_t> shape(static_cast<size_t>(input.dim()), 1);
  shape[static_cast<size_t>(class_dimension(input))] = -1;
  return weight.reshape(shape);
}

// cross_entropy is the sum of q_c * -log p_c over a row, scaled; nll_loss the sum of q_c * -x_c.
struct ClassDistribution {
  at::Tensor q;      // the input's shape; zero in rows that are ignored
  at::Tensor scale;  // broadcasts to it: the gradient of a row's value
};

inline ClassDistribution class_distribution(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& target,
                                            const at::Tensor& weight, int64_t reduction, int64_t ignore_index,
                                            double label_smoothing) {
  TORCH_CHECK(input.dim() >= 1, "cross_entropy: expected input (N, C, ...) or (C,), got ", input.sizes());
  const int64_t dim = class_dimension(input);
  const at::Tensor by_class = weight.defined() ? along_classes(weight, input) : at::Tensor();
  at::Tensor q = target, counts, divisor;
  if (at::isFloatingType(target.scalar_type())) {
    c10::SymInt rows = 1;  // the number of elements divided by the number of classes, which may be 0
    for (int64_t d = 0; d < input.dim(); d++)
      if (d != dim) rows *= input.sym_size(d);
    divisor = at::full({}, at::Scalar(rows), input.options());
  } else {
    at::Tensor index = input.dim() == 1 ? target.reshape({1}) : target.unsqueeze(dim);
    counts = index != ignore_index;
    q = at::zeros_like(input).scatter(dim, at::where(counts, index, 0).to(at::kLong), 1);
    divisor = (weight.defined() ? q * by_class * counts : q * counts).sum();
  }
  if (label_smoothing > 0) q = q * (1 - label_smoothing) + label_smoothing / at::Scalar(input.sym_size(dim)).toDouble();
  if (weight.defined()) q = q * by_class;
  if (counts.defined()) q = q * counts;
  at::Tensor scale = reduction == at::Reduction::Mean ? grad / divisor : grad;
  return {q, reduction == at::Reduction::None ? scale.unsqueeze(dim) : scale};
}

}  // namespace pytorch_ext
