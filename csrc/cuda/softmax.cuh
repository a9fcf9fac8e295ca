// softmax and log_softmax, both directions: a warp per row, or a block per long row.
#pragma once

#include "../cpu/softmax.h"
#include "softmax_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// y = e / sum, or (x - max) - log(sum).
template <class Row, class S>
__global__ void __launch_bounds__(Row::block_threads, Row::blocks) softmax_kernel(Softmax<S> p) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner) return;
  const int64_t o = number / p.inner, i = number % p.inner;
  const Row row(p.columns, p.inner);
  S* y = p.y + o * p.columns * p.inner + i;
  const ExponentialRow<Row, S> e(row, p.x + o * p.x_outer + i, p.logarithm ? nullptr : y, p.logarithm);
  if (p.logarithm) {
    const T log_sum = log(e.sum);
    e.store_shifted(y, [&](T shifted) { return sub(shifted, log_sum); });
  } else {
    const T inverse = div(T(1), e.sum);
    e.store(y, [&](int64_t, T exponential) { return mul(exponential, inverse); });
  }
}

// dx = y (g - sum of y g), or g - e^y (sum of g).
template <class Row, class S>
__global__ void __launch_bounds__(Row::block_threads, Row::blocks) softmax_gradient_kernel(SoftmaxGradient<S> p) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner) return;
  const int64_t first = number / p.inner * p.columns * p.inner + number % p.inner;
  const Row row(p.columns, p.inner);
  const S *grad = p.grad + first, *output = p.y + first;
  auto term = [&](int, int64_t, T g, T y) { return p.logarithm ? g : mul(y, g); };
  auto gradient = [&](T total, T g, T y) {
    return p.logarithm ? fma(neg(exp_nonpositive(y)), total, g) : mul(y, sub(g, total));
  };
  if constexpr (Row::held > 0) {
    T held_grad[Row::held], held_y[Row::held];
    const T total = row.template sum<T>(
        [&](int j, int64_t c, T g, T y) { return term(j, c, held_grad[j] = g, held_y[j] = y); }, grad, output);
    row.store(p.dx + first, [&](int j, int64_t) { return gradient(total, held_grad[j], held_y[j]); });
  } else {
    auto with = [&](const auto* grad, const auto* output) {
      const T total = row.template sum<T>(term, grad, output);
      row.store(p.dx + first, [&](int, int64_t, T g, T y) { return gradient(total, g, y); }, grad, output);
    };
    if constexpr (Row::staged) {
      T *staged_grad = row.template stage<T>(0), *staged_y = row.template stage<T>(1);
      row.begin_staging(staged_grad, grad);
      row.begin_staging(staged_y, output);
      wait_for_copies();
      with(staged_grad, staged_y);
    } else {
      with(grad, output);
    }
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t softmax(const Softmax<S>& p, Device device) {
  const RowLayout layout = row_layout<S>(p.columns, p.inner, p.x_outer, p.x, p.y);
  return with_rows<S>(p.outer * p.inner, p.columns, layout, 1, device, [&](const RowGrid& grid, auto* row) {
    return launch(softmax_kernel<std::remove_pointer_t<decltype(row)>, S>, grid, device, p);
  });
}

template <class S>
cudaError_t softmax_gradient(const SoftmaxGradient<S>& p, Device device) {
  const RowLayout layout = row_layout<S>(p.columns, p.inner, p.columns, p.grad, p.y, p.dx);
  return with_rows<S>(p.outer * p.inner, p.columns, layout, 2, device, [&](const RowGrid& grid, auto* row) {
    return launch(softmax_gradient_kernel<std::remove_pointer_t<decltype(row)>, S>, grid, device, p);
  });
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
