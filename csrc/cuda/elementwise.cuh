// Kernels with one result per element, in groups of neighbours that memory moves at once; and the functions of
// numerics/functions.h over an array.
#pragma once

#include "../cpu/elementwise.h"
#include "../numerics/functions.h"
#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// What a thread works on: 16 bytes, but four elements at least, as many as one counter gives random words.
template <class S>
struct alignas(16) ElementGroup {
  static constexpr int size = sizeof(S) < 4 ? 16 / sizeof(S) : 4;
  S values[size];
};

// The group at x, of which `left` elements exist. `aligned`: x is a multiple of 16 bytes.
template <class S>
__device__ __forceinline__ ElementGroup<S> load_group(const S* x, int64_t left, bool aligned) {
  constexpr int size = ElementGroup<S>::size;
  if (aligned && left >= size) return *reinterpret_cast<const ElementGroup<S>*>(x);
  ElementGroup<S> group = {};
#pragma unroll
  for (int j = 0; j < size; j++)
    if (j < left) group.values[j] = x[j];
  return group;
}
template <class S>
__device__ __forceinline__ void store_group(S* y, const ElementGroup<S>& group, int64_t left, bool aligned) {
  constexpr int size = ElementGroup<S>::size;
  if (aligned && left >= size) {
    *reinterpret_cast<ElementGroup<S>*>(y) = group;
    return;
  }
#pragma unroll
  for (int j = 0; j < size; j++)
    if (j < left) y[j] = group.values[j];
}

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
  const bool aligned = ((reinterpret_cast<uintptr_t>(y) | ... | reinterpret_cast<uintptr_t>(x)) % 16) == 0;
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
