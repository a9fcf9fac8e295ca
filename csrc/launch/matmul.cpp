// matmul: torch.matmul's shapes, each one a batch of products, or a dot product; the gradients are products too.
#include <ATen/ops/empty.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorUtils.h>
#include <ATen/ops/matmul.h>

#include "../cpu/reduce.h"
#include "batch.h"
#include "reduce.h"
#include "tensor_cores.h"

namespace pytorch_ext {

bool covers_matmul(const Tensor& input, const Tensor& other) {
  if (!has_kernels(input) || !alike(other, input) || input.dim() < 1 || other.dim() < 1) return false;
  if (!is_kernel_dtype(input.scalar_type()) || !is_kernel_dtype(other.scalar_type())) return false;
  if (input.size(-1) != other.size(other.dim() == 1 ? 0 : -2)) return false;
  if (input.dim() > 2 && other.dim() > 2 &&
      !at::are_expandable(input.sizes().slice(0, input.dim() - 2), other.sizes().slice(0, other.dim() - 2)))
    return false;
  return products_are_ieee(input);
}

namespace {

// A vector on the left is a row, on the right a column.
Tensor as_left(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t; }
Tensor as_right(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(1) : t; }

void check_matmul(const char* op, const Tensor& input, const Tensor& other) {
  check_same(op, "other", other, input);
  TORCH_CHECK(input.dim() >= 1 && other.dim() >= 1 && input.size(-1) == other.size(other.dim() == 1 ? 0 : -2), op,
              ": expected input (..., M, K) and other (..., K, N), got ", input.sizes(), " and ", other.sizes());
}

template <class S>
MatrixView<S> view(const Tensor& t) {
  return {data<S>(t), t.stride(-2), t.stride(-1)};
}

at::DimVector output_sizes(const Tensor& input, const Tensor& other) {
  auto batch = [](const Tensor& t) { return t.dim() > 2 ? batch_of(t) : at::IntArrayRef(); };
  at::DimVector sizes = at::infer_size_dimvector(batch(input), batch(other));
  if (input.dim() > 1) sizes.push_back(input.size(-2));
  if (other.dim() > 1) sizes.push_back(other.size(-1));
  return sizes;
}

// A tensor of at most two dimensions read as a matrix. Tensors that view it so would take longer to make than a small
// product takes.
struct Matrix {
  const Tensor& of;
  int64_t rows, columns, row, column;

  Matrix t() const { return {of, columns, rows, column, row}; }
  template <class S>
  MatrixView<S> view() const {
    return {data<S>(of), row, column};
  }
};
Matrix left(const Tensor& t) {
  if (t.dim() == 1) return {t, 1, t.size(0), t.size(0) * t.stride(0), t.stride(0)};
  return {t, t.size(0), t.size(1), t.stride(0), t.stride(1)};
}
Matrix right(const Tensor& t) {
  if (t.dim() == 1) return {t, t.size(0), 1, t.stride(0), 1};
  return {t, t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

bool is_single_product(const Tensor& input, const Tensor& other) {
  return input.dim() <= 2 && other.dim() <= 2 && !has_stock_products(input);
}

// The product as a tensor of these sizes; undefined where no kernel covers it.
template <class S>
Tensor computed(TensorCoreProduct<S> p, const Tensor& like, at::IntArrayRef sizes) {
  if (!covers_product(like, p)) return Tensor();
  Tensor C = empty(sizes, like);
  p.C = mutable_data<S>(C);
  run_product(like, p);
  return C;
}

// A B, likewise.
Tensor multiply(const Matrix& A, const Matrix& B, at::IntArrayRef sizes) {
  Tensor C;
  WITH_STORAGE_TYPE("matmul", A.of.scalar_type(), [&] {
    C = computed<S>({{A.rows, B.columns, A.columns, A.view<S>(), B.view<S>(), nullptr, B.columns}}, A.of, sizes);
  });
  return C;
}

void batch_offsets_on_host(const BatchOffsets& p) {
  for (int64_t b = 0; b < p.count; b++) p.offsets[b] = 0;
  int64_t repeat = 1;  // matrices between steps of dimension d
  for (int d = p.dims - 1; d >= 0; repeat *= p.size[d--])
    if (p.stride[d])
      for (int64_t b = 0; b < p.count; b++) p.offsets[b] += b / repeat % p.size[d] * p.stride[d];
}

}  // namespace

Tensor batch_offsets(const Tensor& t, at::IntArrayRef batch, int64_t count) {
  Tensor offsets = at::empty({count}, t.options().dtype(at::kLong));
  BatchOffsets p{static_cast<int>(batch.size()), {}, {}, count, mutable_data<int64_t>(offsets)};
  TORCH_CHECK(p.dims <= BatchOffsets::most_dims, "matmul: expected at most ", BatchOffsets::most_dims + 2,
              " dimensions, got ", p.dims + 2);
  for (int d = 0; d < p.dims; d++) {
    const int64_t own = d + t.dim() - 2 - p.dims;
    p.size[d] = batch[d];
    p.stride[d] = own >= 0 && t.size(own) != 1 ? t.stride(own) : 0;
  }
  kernel_for(t, &batch_offsets_on_host, CUDA_KERNEL(batch_offsets))(p);
  return offsets;
}

namespace {

// Elements between the matrices of t expanded to this batch; none where they are not equally far apart.
std::optional<int64_t> batch_stride(const Tensor& t, at::IntArrayRef batch, int64_t count) {
  const Tensor all = t.expand(with_matrix(batch, t.size(-2), t.size(-1)));
  const at::DimVector in_a_row{count, t.size(-2), t.size(-1)};
  const auto strides = at::detail::computeStride(all.sizes(), all.strides(), in_a_row);
  return strides ? std::optional<int64_t>((*strides)[0]) : std::nullopt;
}

// The batch of p, for the kernel that will take it; false where the tensor cores' cannot. The offsets have to live as
// long as p is used.
template <class S>
bool place_batch(TensorCoreProduct<S>& p, const Tensor& A, const Tensor& B, at::IntArrayRef batch, int64_t count,
                 std::array<Tensor, 2>& offsets) {
  p.batch = count, p.c_batch = p.M * p.N;
  if (sizeof(S) == 2 && A.is_cuda()) {
    const auto a = batch_stride(A, batch, count), b = batch_stride(B, batch, count);
    if (!a || !b) return false;
    p.a_batch = *a, p.b_batch = *b;
  } else {
    offsets = {batch_offsets(A, batch, count), batch_offsets(B, batch, count)};
    p.a_offset = data<int64_t>(offsets[0]), p.b_offset = data<int64_t>(offsets[1]);
  }
  return true;
}

// A (..., M, K) times B (..., K, N), both of two dimensions or more.
Tensor product_of(const Tensor& A, const Tensor& B) {
  if (has_stock_products(A)) return at::matmul(A, B);
  const auto batch = at::infer_size_dimvector(batch_of(A), batch_of(B));
  const int64_t M = A.size(-2), N = B.size(-1), K = A.size(-1);
  int64_t count = c10::multiply_integers(batch);
  Tensor a = A, C;
  int64_t rows = M;
  // One B for the whole batch: where the rows of A are equally far apart, it is one product of all of them.
  if (B.dim() == 2 && count > 1 && at::detail::computeStride(A.sizes(), A.strides(), at::DimVector{count * M, K}))
    a = A.view({rows = count * M, K}), count = 1;
  WITH_STORAGE_TYPE("matmul", A.scalar_type(), [&] {
    TensorCoreProduct<S> p{{rows, N, K, view<S>(a), view<S>(B), nullptr, N}};
    std::array<Tensor, 2> offsets;
    if (count != 1 && !place_batch(p, A, B, batch, count, offsets)) return;
    C = computed(p, A, with_matrix(batch, M, N));
  });
  return C.defined() ? C : at::matmul(A, B);
}

// Of two vectors: a sum and no product, so that it is read as fast as memory gives.
Tensor dot_product_of(const Tensor& x, const Tensor& y) {
  Tensor result = empty({}, x);
  WITH_STORAGE_TYPE("matmul", x.scalar_type(), [&] {
    RUN_KERNEL(x, dot_product<S>)
    (DotProduct<S>{x.size(0), data<S>(x), x.stride(0), data<S>(y), y.stride(0), mutable_data<S>(result)});
  });
  return result;
}

Tensor matmul_forward(const Tensor& input, const Tensor& other) {
  check_matmul("matmul", input, other);
  if (input.dim() == 1 && other.dim() == 1) return dot_product_of(input, other);
  if (is_single_product(input, other)) {
    Tensor output = multiply(left(input), right(other), output_sizes(input, other));
    if (output.defined()) return output;
  }
  Tensor output = product_of(as_left(input), as_right(other));
  if (other.dim() == 1) output.squeeze_(-1);
  if (input.dim() == 1) output.squeeze_(-2);
  return output;
}

// A B of every matrix of the batch, summed to `sizes` where that was broadcast: 16-bit products before their rounding.
Tensor summed_products(const Tensor& A, const Tensor& B, at::IntArrayRef sizes) {
  const auto all = with_matrix(at::infer_size_dimvector(batch_of(A), batch_of(B)), A.size(-2), B.size(-1));
  const at::ScalarType dtype = A.scalar_type();
  if (at::IntArrayRef(all) == sizes || dtype == at::kFloat || dtype == at::kDouble)
    return sum_to_size(product_of(A, B), sizes);
  return sum_to_size(product_of(A.to(at::kFloat), B.to(at::kFloat)), sizes).to(dtype);
}

// A matrix that the whole batch shares has one product as its gradient, whose sum runs over the batch and its rows.
// What is broadcast otherwise has a product for every matrix of the batch, and their sum by the sum rule.
Tensor left_gradient(const Tensor& grad, const Tensor& A, const Tensor& B) {
  if (A.dim() > 2 || B.dim() == 2) return summed_products(grad, B.mT(), A.sizes());
  const int64_t terms = c10::multiply_integers(batch_of(grad)) * grad.size(-1);
  return product_of(grad.movedim(-2, 0).reshape({A.size(0), terms}), B.mT().reshape({terms, A.size(1)}));
}

Tensor right_gradient(const Tensor& grad, const Tensor& A, const Tensor& B) {
  if (B.dim() > 2 || A.dim() == 2) return summed_products(A.mT(), grad, B.sizes());
  const int64_t terms = c10::multiply_integers(batch_of(grad)) * grad.size(-2);
  return product_of(A.reshape({terms, B.size(0)}).t(), grad.reshape({terms, B.size(1)}));
}

std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad, const Tensor& input, const Tensor& other,
                                           std::array<bool, 2> mask) {
  check_matmul("matmul_backward", input, other);
  check_same("matmul_backward", "grad", grad, input);
  const at::DimVector sizes = output_sizes(input, other);
  TORCH_CHECK(grad.sizes() == sizes, "matmul_backward: expected grad ", at::IntArrayRef(sizes), ", got ", grad.sizes());
  if (is_single_product(input, other)) {
    const Matrix A = left(input), B = right(other);
    const Matrix g{grad, A.rows, B.columns, input.dim() == 2 ? grad.stride(0) : 1,
                   other.dim() == 2 ? grad.stride(-1) : 1};
    Tensor dinput, dother;
    if (mask[0]) dinput = multiply(g, B.t(), input.sizes());
    if (mask[1]) dother = multiply(A.t(), g, other.sizes());
    if (mask[0] == dinput.defined() && mask[1] == dother.defined()) return {dinput, dother};
  }
  Tensor A = as_left(input), B = as_right(other), g = grad, dinput, dother;
  if (other.dim() == 1) g = g.unsqueeze(-1);
  if (input.dim() == 1) g = g.unsqueeze(-2);
  if (mask[0]) dinput = left_gradient(g, A, B).view(input.sizes());
  if (mask[1]) dother = right_gradient(g, A, B).view(other.sizes());
  return {dinput, dother};
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("matmul_forward", &matmul_forward);
  m.impl("matmul_backward", &matmul_backward);
}

}  // namespace pytorch_ext
