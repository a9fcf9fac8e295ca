// Kernels with one result per element, in groups of neighbours; and the functions of numerics/functions.h over an
// array.
#pragma once

#include "../cpu/elementwise.h"
#include "../numerics/functions.h"
#include "groups.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int MAP_THREADS = 256;

// y[i] = g(j, x[i]...) with g = f.group(first) for the group from element `first`, of which i is the j-th. y may be
// one of the x.
template <class S, class F, class... X>
__global__ void __launch_bounds__(MAP_THREADS) map_kernel(F f, int64_t n, bool aligned, S* y, X... x) {
  constexpr int size = ElementGroup<S>::size;
  const int64_t first = global_thread() * size, left = n - first;
  if (left <= 0) return;
  const auto g = f.group(first);
  auto map = [&](const auto&... loaded) {
    ElementGroup<S> result;
#pragma unroll
    for (int j = 0; j < size; j++) result.values[j] = narrow<S>(g(j, widen(loaded.values[j])...));
    return result;
  };
  store_group(y + first, map(load_group(x + first, left, aligned)...), left, aligned);
}

template <class S, class F, class... X>
cudaError_t map(F f, int64_t n, S* y, Device device, const X*... x) {
  const bool aligned = are_aligned(y, x...);
  const int64_t groups = ceil_div(n, ElementGroup<S>::size);
  return launch(map_kernel<S, F, const X*...>, ceil_div(groups, MAP_THREADS), MAP_THREADS, 0, device, f, n, aligned, y,
                x...);
}

#define PYTORCH_EXT_EACH_FUNCTION(X) X(exp) X(exp_nonpositive) X(log) X(log1p) X(tanh) X(sigmoid) X(erf)

template <Function f>
struct FunctionValue {
  __device__ __forceinline__ auto group(int64_t) const {
    return [](int, auto x) {
      switch (f) {
#define PYTORCH_EXT_CASE(name) \
  case Function::name: return name(x);
        PYTORCH_EXT_EACH_FUNCTION(PYTORCH_EXT_CASE)
#undef PYTORCH_EXT_CASE
      }
      return x;
    };
  }
};

// y[i] = f(x[i]) for S float or double. x and y may be the same array.
template <class S>
cudaError_t apply_function(Function f, int64_t n, const S* x, S* y, Device device) {
  switch (f) {
#define PYTORCH_EXT_CASE(name) \
  case Function::name: return map(FunctionValue<Function::name>{}, n, y, device, x);
    PYTORCH_EXT_EACH_FUNCTION(PYTORCH_EXT_CASE)
#undef PYTORCH_EXT_CASE
  }
  return cudaErrorInvalidValue;
}
#undef PYTORCH_EXT_EACH_FUNCTION

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
