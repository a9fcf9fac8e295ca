// Element-wise losses by the names of their operators, and their operands.
#pragma once

#include <string_view>

#include "../cpu/elementwise_loss.h"
#include "kernel.h"

namespace pytorch_ext {

constexpr std::string_view ELEMENTWISE_LOSS_NAMES[] = {"mse_loss", "binary_cross_entropy",
                                                       "binary_cross_entropy_with_logits"};

inline std::string_view elementwise_loss_name(ElementwiseLoss loss) {
  return ELEMENTWISE_LOSS_NAMES[static_cast<int>(loss)];
}

inline ElementwiseLoss elementwise_loss_named(std::string_view name) {
  for (int i = 0; i < 3; i++)
    if (name == ELEMENTWISE_LOSS_NAMES[i]) return static_cast<ElementwiseLoss>(i);
  TORCH_CHECK(false,
              "elementwise_loss: expected loss mse_loss, binary_cross_entropy or binary_cross_entropy_with_logits,"
              " got ",
              name);
}

// The operands at their common shape, contiguous; they live as long as the kernel reads them.
struct ElementwiseOperands {
  at::DimVector sizes;
  Tensor input, target;
  OptionalTensor weight, pos_weight, mean_weight;

  template <class S>
  ElementwiseLossArrays<S> arrays(ElementwiseLoss loss, int64_t reduction) const {
    ElementwiseLossArrays<S> p{loss, static_cast<Reduction>(reduction), input.numel(), data<S>(input), data<S>(target)};
    p.weight = data<S>(weight);
    p.pos_weight = data<S>(pos_weight);
    p.mean_weight = data<S>(mean_weight);
    if (mean_weight) p.mean_weight_count = mean_weight->numel();
    return p;
  }
};

// Raises where they do not fit.
ElementwiseOperands elementwise_operands(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                         const OptionalTensor& pos_weight, ElementwiseLoss loss, int64_t reduction);

// Raises where an element of a loss of probabilities is none.
void check_probabilities(const Tensor& input, const Tensor& target);

}  // namespace pytorch_ext
