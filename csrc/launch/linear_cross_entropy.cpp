// linear_cross_entropy: cross_entropy of linear's logits and its gradients, a chunk of rows at a time, so that the
// logits of no more rows are ever stored. Every sum is taken in the order of the two operators one after the other.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/div.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "../cpu/parallel.h"
#include "../numerics/order.h"
#include "../ops.h"
#include "class_targets.h"
#include "covers.h"
#include "reduce.h"
#include "row_sum.h"
#include "tensor_cores.h"

namespace pytorch_ext {
namespace {

// A chunk has about so many logits, yet rows enough for whole chunks of the weight gradient's sum.
constexpr int64_t LOGITS_IN_CHUNK = int64_t(1) << 22, ROWS_IN_SUM = baseline::PRODUCT_CHUNK;

int64_t rows_of_chunk(int64_t logits_in_row) {
  return std::max<int64_t>(LOGITS_IN_CHUNK / std::max<int64_t>(logits_in_row, 1) / ROWS_IN_SUM, 1) * ROWS_IN_SUM;
}

bool has_probabilities(const Tensor& target) { return at::isFloatingType(target.scalar_type()); }

// The sizes of one input's logits: (classes, d1, ...).
at::IntArrayRef logit_sizes(const Tensor& linear_weight) {
  return linear_weight.sizes().slice(0, linear_weight.dim() - 1);
}

// The sizes of the target: those of the logits, without the classes where it holds class indices.
at::DimVector target_sizes(const Tensor& input, const Tensor& linear_weight, bool probabilities) {
  at::DimVector sizes(input.sizes().begin(), input.sizes().end() - 1);
  const auto logits = logit_sizes(linear_weight).slice(probabilities ? 0 : 1);
  sizes.append(logits.begin(), logits.end());
  return sizes;
}

bool shapes_fit(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                const OptionalTensor& linear_bias, const OptionalTensor& weight) {
  const int64_t dims = linear_weight.dim();
  return (input.dim() == 2 || (input.dim() == 1 && dims == 2)) && dims >= 2 &&
         input.size(-1) == linear_weight.size(-1) && linear_weight.numel() > 0 &&
         target.sizes() == target_sizes(input, linear_weight, has_probabilities(target)) &&
         (!linear_bias || linear_bias->sizes() == logit_sizes(linear_weight)) &&
         (!weight || (weight->dim() == 1 && weight->size(0) == linear_weight.size(0)));
}

}  // namespace

bool covers_linear_cross_entropy(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                 const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                                 int64_t ignore_index, double label_smoothing, std::optional<at::ScalarType> dtype) {
  auto matches = [&](const Tensor& t) { return alike(t, input) && is_kernel_dtype(t.scalar_type()); };
  auto is_constant = [&](const Tensor& t) { return will_match(t, input) && !t.requires_grad(); };
  return has_kernels(input) && is_kernel_dtype(input.scalar_type()) && matches(linear_weight) &&
         (!linear_bias || matches(*linear_bias)) && target.device() == input.device() && reduction >= 0 &&
         reduction <= 2 && !(label_smoothing > 1) && (!weight || is_constant(*weight)) &&
         (has_probabilities(target) ? is_constant(target) && ignore_index < 0 : target.scalar_type() == at::kLong) &&
         !dtype && shapes_fit(input, linear_weight, target, linear_bias, weight) && products_are_ieee(input);
}

namespace {

// Runs the body with IEEE arithmetic in the operators of torch too, whatever the caller has set.
template <class Body>
void with_ieee_arithmetic(Body&& body) {
  cpu::parallel_for(1, 1, [&](int64_t, int64_t) { body(); });
}

// What all chunks have in common.
struct Problem {
  Tensor input, linear_weight, target;  // (N, in_features), (logits, in_features); one target per row of the input
  OptionalTensor linear_bias, weight;   // (logits,); (classes,) in the dtype that losses are computed in
  at::DimVector logits;                 // (classes, d1, ...)
  int64_t reduction, ignore_index;
  double label_smoothing;
  at::ScalarType dtype;  // that losses are computed in

  int64_t rows() const { return input.size(0); }
  int64_t logits_in_row() const { return linear_weight.size(0); }
};

Problem problem_of(const char* op, const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                   const OptionalTensor& linear_bias, const OptionalTensor& weight, int64_t reduction,
                   int64_t ignore_index, double label_smoothing) {
  TORCH_CHECK(is_kernel_dtype(input.scalar_type()), op, ": expected float32, float64, bfloat16 or float16, got ",
              input.scalar_type());
  check_same(op, "linear_weight", linear_weight, input);
  if (linear_bias) check_same(op, "linear_bias", *linear_bias, input);
  TORCH_CHECK(has_probabilities(target) || target.scalar_type() == at::kLong, op,
              ": expected target of class indices (int64) or class probabilities, got ", target.scalar_type());
  TORCH_CHECK(target.device() == input.device(), op, ": expected target on ", input.device(), ", got ",
              target.device());
  TORCH_CHECK(reduction >= 0 && reduction <= 2, op, ": expected reduction 0, 1 or 2, got ", reduction);
  TORCH_CHECK(shapes_fit(input, linear_weight, target, linear_bias, weight), op,
              ": expected input (N, F), linear_weight (C, d1, ..., F) and a target that fits, got ", input.sizes(),
              ", ", linear_weight.sizes(), " and ", target.sizes());
  const at::ScalarType dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t features = input.size(-1), in_row = linear_weight.numel() / features;
  Problem p{input.reshape({-1, features}), linear_weight.reshape({in_row, features}), target};
  if (input.dim() == 1) p.target = target.unsqueeze(0);
  if (has_probabilities(target)) p.target = p.target.to(dtype);
  if (linear_bias) p.linear_bias = linear_bias->reshape({in_row});
  if (weight) p.weight = weight->to(dtype).contiguous();
  p.logits = at::DimVector(logit_sizes(linear_weight));
  p.reduction = reduction, p.ignore_index = ignore_index, p.label_smoothing = label_smoothing, p.dtype = dtype;
  if (input.is_cpu() && !has_probabilities(target)) {
    const Tensor indices = target.contiguous();
    count_rows(op, indices.const_data_ptr<int64_t>(), indices.numel(), p.logits[0], ignore_index);
  }
  return p;
}

// What a mean divides by, as cross_entropy's kernel has it.
Tensor divisor_of(const Problem& p) {
  const auto options = p.input.options().dtype(p.dtype);
  if (has_probabilities(p.target)) return at::full({}, p.target.numel() / p.logits[0], options);
  const Tensor counts = p.target != p.ignore_index;
  if (!p.weight) return counts.sum().to(p.dtype);
  const Tensor of_rows = p.weight->index_select(0, at::where(counts, p.target, 0).reshape({-1}));
  return sum_to_size(at::where(counts.reshape({-1}), of_rows, at::zeros({}, options)), {});
}

struct Gradients {
  Tensor input, linear_weight, linear_bias;
};

// linear_weight's gradient is summed over the rows in the order of one product: chunk after chunk onto what is there.
void add_weight_gradient(const Problem& p, const Tensor& dlogits, const Tensor& narrow_dlogits, const Tensor& input,
                         bool first, const Tensor& total) {
  if (has_stock_products(input)) {
    const Tensor product = at::mm(narrow_dlogits.t(), input, at::kFloat);
    first ? total.copy_(product) : total.add_(product);
    return;
  }
  const Tensor x = input.to(p.dtype);
  WITH_STORAGE_TYPE("linear_cross_entropy", p.dtype, [&] {
    if constexpr (sizeof(S) > 2) {
      const MatrixView<S> left{data<S>(dlogits), 1, dlogits.stride(0)}, right{data<S>(x), x.stride(0), x.stride(1)};
      Product<S> sums{total.size(0), total.size(1), x.size(0), left, right, mutable_data<S>(total), total.size(1)};
      sums.accumulates = !first;
      RUN_KERNEL(input, product<S>)(sums);
    }
  });
}

// The losses of `rows` rows and the gradients of their logits, for the loss gradients `grad`; where they are defined.
void losses_and_gradients(const Problem& p, const Tensor& logits, const Tensor& target, const Tensor& grad,
                          const Tensor& losses, const Tensor& dlogits) {
  const ClassOperands o =
      class_operands("linear_cross_entropy", logits, target, p.weight, at::Reduction::None, p.ignore_index);
  WITH_STORAGE_TYPE("linear_cross_entropy", p.dtype, [&] {
    auto arguments = cross_entropy_arguments<S>(o, at::Reduction::None, p.ignore_index, p.label_smoothing);
    arguments.grad = grad.defined() ? data<S>(grad) : nullptr;
    arguments.loss = mutable_data<S>(losses);
    arguments.dinput = mutable_data<S>(dlogits);
    RUN_KERNEL(logits, cross_entropy<S>)(arguments);
  });
}

// All chunks: the losses of all rows into `losses`, and the gradients that the mask chooses for the loss gradients
// `grad`, one for each row or the same for all.
Gradients run_chunks(const Problem& p, const Tensor& grad, const Tensor& losses, std::array<bool, 3> mask) {
  const int64_t N = p.rows(), columns = p.logits_in_row(), step = rows_of_chunk(columns);
  const bool narrow = p.input.element_size() == 2, differentiates = mask[0] || mask[1] || mask[2];
  at::DimVector sizes{0};
  sizes.append(p.logits.begin(), p.logits.end());
  Gradients d;
  RowSum bias_sum;
  if (mask[0]) d.input = empty(p.input.sizes(), p.input);
  if (mask[1]) d.linear_weight = empty(p.linear_weight.sizes(), p.input, p.dtype);
  if (mask[1] && N == 0) d.linear_weight.zero_();
  Tensor dlogits;
  for (int64_t begin = 0; begin < N; begin += step) {
    const int64_t rows = std::min(step, N - begin);
    sizes[0] = rows;
    const Tensor x = p.input.narrow(0, begin, rows);
    const Tensor logits =
        std::get<0>(ops::linear_forward(x, p.linear_weight, p.linear_bias, "none")).to(p.dtype).view(sizes);
    if (differentiates) dlogits = dlogits.defined() ? dlogits.narrow(0, 0, rows) : empty(sizes, p.input, p.dtype);
    const Tensor target = p.target.narrow(0, begin, rows);
    Tensor own_losses, of_rows;
    if (losses.defined()) own_losses = losses.narrow(0, begin, rows);
    if (differentiates) of_rows = grad.dim() ? grad.narrow(0, begin, rows) : grad.expand(loss_sizes(logits, target, 0));
    if (differentiates) of_rows = of_rows.contiguous();
    losses_and_gradients(p, logits, target, of_rows, own_losses, dlogits);
    if (!differentiates) continue;
    const Tensor dz = dlogits.view({rows, columns}), narrow_dz = narrow ? dz.to(p.input.scalar_type()) : dz;
    if (mask[0])
      d.input.narrow(0, begin, rows)
          .copy_(std::get<0>(ops::linear_backward(narrow_dz, x, p.linear_weight, {}, "none", {true, false, false})));
    if (mask[1]) add_weight_gradient(p, dz, narrow_dz, x, begin == 0, d.linear_weight);
    if (mask[2]) bias_sum.add(dz);
  }
  if (mask[1]) d.linear_weight = d.linear_weight.to(p.input.scalar_type());
  if (mask[2]) {
    d.linear_bias = bias_sum.result({columns});
    d.linear_bias =
        d.linear_bias.defined() ? d.linear_bias.to(p.input.scalar_type()) : at::zeros({columns}, p.input.options());
  }
  return d;
}

// The gradient of each row's loss where the loss's is 1.
Tensor row_gradient(const Problem& p, const Tensor& divisor) {
  const Tensor one = at::ones({}, p.input.options().dtype(p.dtype));
  return p.reduction == at::Reduction::Mean ? at::div(one, divisor) : one;
}

Tensor shaped_as(const Tensor& gradient, const Tensor& argument) {
  return gradient.defined() ? gradient.view(argument.sizes()) : gradient;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
    const OptionalTensor& weight, int64_t reduction, int64_t ignore_index, double label_smoothing,
    std::optional<at::ScalarType> dtype, std::array<bool, 3> mask) {
  const Problem p = problem_of("linear_cross_entropy", input, linear_weight, target, linear_bias, weight, reduction,
                               ignore_index, label_smoothing);
  TORCH_CHECK(reduction != at::Reduction::None || !(mask[0] || mask[1] || mask[2]),
              "linear_cross_entropy: expected a loss of one number for gradients in advance, got reduction 0");
  Tensor loss;
  Gradients d;
  with_ieee_arithmetic([&] {
    at::DimVector sizes = target_sizes(p.input, linear_weight, /*probabilities=*/false);
    const Tensor losses = at::empty(sizes, p.input.options().dtype(p.dtype));
    Tensor divisor;
    if (reduction == at::Reduction::Mean) divisor = divisor_of(p);
    d = run_chunks(p, row_gradient(p, divisor), losses, mask);
    loss = losses;
    if (reduction != at::Reduction::None) loss = sum_to_size(losses.reshape({-1}), {});
    if (reduction == at::Reduction::Mean) loss = at::div(loss, divisor);
    if (reduction == at::Reduction::None && input.dim() == 1) loss = losses.squeeze(0);
    loss = loss.to(dtype.value_or(input.scalar_type()));
  });
  return {loss, shaped_as(d.input, input), shaped_as(d.linear_weight, linear_weight),
          linear_bias ? shaped_as(d.linear_bias, *linear_bias) : Tensor()};
}

Tensor linear_cross_entropy_inference(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                                      const OptionalTensor& linear_bias, const OptionalTensor& weight,
                                      int64_t reduction, int64_t ignore_index, double label_smoothing,
                                      std::optional<at::ScalarType> dtype) {
  return std::get<0>(linear_cross_entropy_forward(input, linear_weight, target, linear_bias, weight, reduction,
                                                  ignore_index, label_smoothing, dtype, {false, false, false}));
}

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& linear_weight, const Tensor& target,
                                                                 const OptionalTensor& linear_bias,
                                                                 const OptionalTensor& weight, int64_t reduction,
                                                                 int64_t ignore_index, double label_smoothing,
                                                                 std::array<bool, 3> mask) {
  const char* op = "linear_cross_entropy_backward";
  const Problem p =
      problem_of(op, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing);
  mask[2] = mask[2] && linear_bias;
  const bool in_rows = reduction == at::Reduction::None;
  const auto sizes = in_rows ? target_sizes(input, linear_weight, /*probabilities=*/false) : at::DimVector{};
  TORCH_CHECK(grad.sizes() == sizes && grad.device() == input.device(), op, ": expected grad ", at::IntArrayRef(sizes),
              " on ", input.device(), ", got ", grad.sizes(), " on ", grad.device());
  Gradients d;
  with_ieee_arithmetic([&] {
    const Tensor g = grad.to(p.dtype);
    const Tensor divisor = reduction == at::Reduction::Mean ? divisor_of(p) : Tensor();
    d = run_chunks(p, !in_rows ? row_gradient(p, divisor) : input.dim() == 1 ? g.reshape({1}) : g, Tensor(), mask);
    if (!in_rows)
      for (const Tensor& t : {d.input, d.linear_weight, d.linear_bias})
        if (t.defined()) t.mul_(g);
  });
  return {shaped_as(d.input, input), shaped_as(d.linear_weight, linear_weight),
          linear_bias ? shaped_as(d.linear_bias, *linear_bias) : Tensor()};
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("linear_cross_entropy_inference", &linear_cross_entropy_inference);
  m.impl("linear_cross_entropy_forward", &linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_backward);
}

}  // namespace pytorch_ext
