// Optimiser updates over a list of tensors: one launch for as many as fit a kernel's arguments.
#pragma once

#include "../cpu/optimizers.h"
#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int UPDATE_THREADS = 256, UPDATES_PER_THREAD = 4, UPDATES_PER_BLOCK = UPDATE_THREADS * UPDATES_PER_THREAD;

// A part of the list, by value. Block b works on the tensor t with first_block[t] <= b < first_block[t + 1].
template <class Tensor>
struct TensorPart {
  static constexpr int most = 4000 / (sizeof(Tensor) + sizeof(int));  // arguments end at 4096 bytes
  int count;
  int first_block[most + 1];
  Tensor tensors[most];
};

// Calls f(tensor, i) for the elements of this thread.
template <class Tensor, class F>
__device__ __forceinline__ void each_element(const TensorPart<Tensor>& part, F&& f) {
  const int block = blockIdx.x;
  int low = 0, high = part.count;  // the tensor is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (part.first_block[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  const Tensor& tensor = part.tensors[low];
  const int64_t begin = static_cast<int64_t>(block - part.first_block[low]) * UPDATES_PER_BLOCK + threadIdx.x;
#pragma unroll
  for (int j = 0; j < UPDATES_PER_THREAD; j++)
    if (begin + j * UPDATE_THREADS < tensor.count) f(tensor, begin + j * UPDATE_THREADS);
}

template <class S>
__global__ void __launch_bounds__(UPDATE_THREADS)
    sgd_step_kernel(SgdRule<compute_t<S>> rule, TensorPart<SgdTensor<S>> part) {
  each_element(part, [&](const SgdTensor<S>& x, int64_t i) {
    auto param = widen(x.param[i]), buffer = x.buffer && !x.first ? widen(x.buffer[i]) : compute_t<S>(0);
    sgd_update(rule, param, widen(x.grad[i]), x.buffer ? &buffer : nullptr, x.first);
    x.param[i] = narrow<S>(param);
    if (x.buffer) x.buffer[i] = narrow<S>(buffer);
  });
}

template <class S>
__global__ void __launch_bounds__(UPDATE_THREADS)
    adam_step_kernel(AdamRule<compute_t<S>> rule, TensorPart<AdamTensor<S>> part) {
  each_element(part, [&](const AdamTensor<S>& x, int64_t i) {
    auto param = widen(x.param[i]), m = widen(x.exp_avg[i]), v = widen(x.exp_avg_sq[i]);
    auto v_max = x.max_exp_avg_sq ? widen(x.max_exp_avg_sq[i]) : compute_t<S>(0);
    adam_update(rule, x.negative_step_size, x.scale, param, widen(x.grad[i]), m, v,
                x.max_exp_avg_sq ? &v_max : nullptr);
    x.param[i] = narrow<S>(param);
    x.exp_avg[i] = narrow<S>(m);
    x.exp_avg_sq[i] = narrow<S>(v);
    if (x.max_exp_avg_sq) x.max_exp_avg_sq[i] = narrow<S>(v_max);
  });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

// Launches kernel(rule, part) for part after part of `tensors`, which lie in host memory.
template <class Rule, class Tensor>
cudaError_t update_in_parts(void (*kernel)(Rule, TensorPart<Tensor>), const Rule& rule, const Tensor* tensors,
                            int64_t count, Device device) {
  for (int64_t t = 0; t < count;) {
    TensorPart<Tensor> part{};
    int64_t blocks = 0;
    for (; t < count && part.count < TensorPart<Tensor>::most; t++) {
      const int64_t more = ceil_div(tensors[t].count, UPDATES_PER_BLOCK);
      if (more == 0) continue;
      if (blocks + more > INT32_MAX) {
        if (part.count == 0) return cudaErrorInvalidConfiguration;
        break;
      }
      part.tensors[part.count] = tensors[t];
      part.first_block[part.count++] = static_cast<int>(blocks);
      blocks += more;
    }
    const cudaError_t error = launch(kernel, blocks, UPDATE_THREADS, 0, device, rule, part);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class S>
cudaError_t sgd_step(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>* tensors, int64_t count, Device device) {
  return update_in_parts(sgd_step_kernel<S>, rule, tensors, count, device);
}

template <class S>
cudaError_t adam_step(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>* tensors, int64_t count, Device device) {
  return update_in_parts(adam_step_kernel<S>, rule, tensors, count, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
