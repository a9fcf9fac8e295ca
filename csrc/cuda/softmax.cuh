// softmax and log_softmax, both directions: a warp per row, or a block per long row.
#pragma once

#include "../cpu/softmax.h"
#include "softmax_rows.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// y = e / sum, or (x - max) - log(sum).
template <class Row, class S>
__global__ void softmax_kernel(Softmax<S> p) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner) return;
  const int64_t o = number / p.inner, i = number % p.inner;
  const Row row(p.columns);
  S* y = p.y + o * p.columns * p.inner + i;
  ExponentialRow<Row, S> e(row, p.x + o * p.x_outer + i, p.logarithm ? nullptr : y, p.inner);
  if (p.logarithm) {
    const T log_sum = log(e.sum);
    row.each([&](int, int64_t c) { y[c * p.inner] = narrow<S>(sub(e.shifted(c), log_sum)); });
  } else {
    const T inverse = div(T(1), e.sum);
    row.each([&](int j, int64_t c) { y[c * p.inner] = narrow<S>(mul(e.exponential(j, c), inverse)); });
  }
}

// dx = y (g - sum of y g), or g - e^y (sum of g).
template <class Row, class S>
__global__ void softmax_gradient_kernel(SoftmaxGradient<S> p) {
  using T = compute_t<S>;
  const int64_t number = own_row<Row>();
  if (number >= p.outer * p.inner) return;
  const int64_t first = number / p.inner * p.columns * p.inner + number % p.inner;
  const Row row(p.columns);
  auto g = [&](int64_t c) { return widen(p.grad[first + c * p.inner]); };
  auto y = [&](int64_t c) { return widen(p.y[first + c * p.inner]); };
  if (p.logarithm) {
    const T total = row.template sum<T>([&](int, int64_t c) { return g(c); });
    row.each(
        [&](int, int64_t c) { p.dx[first + c * p.inner] = narrow<S>(fma(neg(exp_nonpositive(y(c))), total, g(c))); });
  } else {
    const T dot = row.template sum<T>([&](int, int64_t c) { return mul(y(c), g(c)); });
    row.each([&](int, int64_t c) { p.dx[first + c * p.inner] = narrow<S>(mul(y(c), sub(g(c), dot))); });
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t softmax(const Softmax<S>& p, Device device) {
  return launch_rows<compute_t<S>>(softmax_kernel<WarpRow<HELD_COLUMNS>, S>, softmax_kernel<WarpRow<0>, S>,
                                   softmax_kernel<BlockRow, S>, p.outer * p.inner, p.columns, device, p);
}

template <class S>
cudaError_t softmax_gradient(const SoftmaxGradient<S>& p, Device device) {
  return launch_rows<compute_t<S>>(softmax_gradient_kernel<WarpRow<HELD_COLUMNS>, S>,
                                   softmax_gradient_kernel<WarpRow<0>, S>, softmax_gradient_kernel<BlockRow, S>,
                                   p.outer * p.inner, p.columns, device, p);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
