// Optimiser updates and gradient clipping over a list of tensors: one launch for as many as fit a kernel's arguments.
#pragma once

#include "../cpu/optimizers.h"
#include "graph_arguments.h"
#include "reduce.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int UPDATE_THREADS = 256;
template <class S>
constexpr int UPDATES_PER_BLOCK = UPDATE_THREADS * ElementGroup<S>::size;

// A part of the list, by value. Block b works on the tensor t with first_block[t] <= b < first_block[t + 1].
template <class Tensor>
struct TensorPart {
  static constexpr int most = 4000 / (sizeof(Tensor) + sizeof(int));  // arguments end at 4096 bytes
  int count;
  int first_block[most + 1];
  Tensor tensors[most];
};

// The number of this block's tensor. One without elements has no block.
template <class Tensor>
__device__ __forceinline__ int own_tensor(const TensorPart<Tensor>& part) {
  const int block = blockIdx.x;
  int low = 0, high = part.count;  // the tensor is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (part.first_block[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Calls f(tensor, first, left) for the group of elements of this thread, of which `left` exist.
template <class S, class Tensor, class F>
__device__ __forceinline__ void own_group(const TensorPart<Tensor>& part, F&& f) {
  const int t = own_tensor(part), block = blockIdx.x;
  const Tensor& tensor = part.tensors[t];
  const int64_t first =
      static_cast<int64_t>(block - part.first_block[t]) * UPDATES_PER_BLOCK<S> + threadIdx.x * ElementGroup<S>::size;
  if (first < tensor.count) f(tensor, first, tensor.count - first);
}

// The step of the group of elements from `first` on, of which `left` exist. `aligned`: x's arrays are.
template <class S>
__device__ __forceinline__ void sgd_step_of_group(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>& x,
                                                  const ElementGroup<S>& grads, int64_t first, int64_t left,
                                                  bool aligned) {
  const bool reads = x.buffer && !x.first;
  auto params = load_group(x.param + first, left, aligned);
  ElementGroup<S> buffers = {};
  if (reads) buffers = load_group(x.buffer + first, left, aligned);
#pragma unroll
  for (int j = 0; j < ElementGroup<S>::size; j++) {
    auto param = widen(params.values[j]), buffer = reads ? widen(buffers.values[j]) : compute_t<S>(0);
    auto update = [&](compute_t<S>* b) { sgd_update(rule, param, widen(grads.values[j]), b, x.first); };
    // Not one call with a pointer that may be null: that would put the buffer into local memory.
    x.buffer ? update(&buffer) : update(nullptr);
    params.values[j] = narrow<S>(param);
    buffers.values[j] = narrow<S>(buffer);
  }
  store_group(x.param + first, params, left, aligned);
  if (x.buffer) store_group(x.buffer + first, buffers, left, aligned);
}

template <class S>
__device__ __forceinline__ void adam_step_of_group(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>& x,
                                                   const ElementGroup<S>& grads, int64_t first, int64_t left,
                                                   bool aligned) {
  auto params = load_group(x.param + first, left, aligned);
  auto averages = load_group(x.exp_avg + first, left, aligned);
  auto squares = load_group(x.exp_avg_sq + first, left, aligned);
  ElementGroup<S> largest = {};
  if (x.max_exp_avg_sq) largest = load_group(x.max_exp_avg_sq + first, left, aligned);
#pragma unroll
  for (int j = 0; j < ElementGroup<S>::size; j++) {
    auto param = widen(params.values[j]), m = widen(averages.values[j]), v = widen(squares.values[j]);
    auto v_max = widen(largest.values[j]);
    auto update = [&](compute_t<S>* v_largest) {
      adam_update(rule, x.negative_step_size, x.scale, param, widen(grads.values[j]), m, v, v_largest);
    };
    x.max_exp_avg_sq ? update(&v_max) : update(nullptr);  // two calls, as above
    params.values[j] = narrow<S>(param);
    averages.values[j] = narrow<S>(m);
    squares.values[j] = narrow<S>(v);
    largest.values[j] = narrow<S>(v_max);
  }
  store_group(x.param + first, params, left, aligned);
  store_group(x.exp_avg + first, averages, left, aligned);
  store_group(x.exp_avg_sq + first, squares, left, aligned);
  if (x.max_exp_avg_sq) store_group(x.max_exp_avg_sq + first, largest, left, aligned);
}

// The numbers of a step: a launch has the rule, and beside each tensor what Adam has of the step; or their place in
// device memory, where a graph's launches find those of each step.
template <class Rule>
__device__ __forceinline__ const Rule& rule_of(const Rule& given) {
  return given;
}
template <class T>
__device__ __forceinline__ SgdRule<T> rule_of(const SgdRule<T>* recorded) {
  return *recorded;
}
template <class T>
__device__ __forceinline__ AdamRule<T> rule_of(const AdamNumbers<T>* recorded) {
  return recorded->rule;
}
template <class S, class T>
__device__ __forceinline__ AdamTensor<S> at_this_step(const AdamRule<T>&, const AdamTensor<S>& x) {
  return x;
}
template <class S, class T>
__device__ __forceinline__ AdamTensor<S> at_this_step(const AdamNumbers<T>* recorded, AdamTensor<S> x) {
  x.negative_step_size = recorded->negative_step_size, x.scale = recorded->scale;
  return x;
}

template <class S, class Numbers>
__global__ void __launch_bounds__(UPDATE_THREADS) sgd_step_kernel(Numbers numbers, TensorPart<SgdTensor<S>> part) {
  const auto& rule = rule_of(numbers);
  own_group<S>(part, [&](const SgdTensor<S>& x, int64_t first, int64_t left) {
    const bool aligned = are_aligned(x.param, x.grad, x.buffer);
    sgd_step_of_group(rule, x, load_group(x.grad + first, left, aligned), first, left, aligned);
  });
}

template <class S, class Numbers>
__global__ void __launch_bounds__(UPDATE_THREADS) adam_step_kernel(Numbers numbers, TensorPart<AdamTensor<S>> part) {
  const auto& rule = rule_of(numbers);
  own_group<S>(part, [&](const AdamTensor<S>& x, int64_t first, int64_t left) {
    const bool aligned = are_aligned(x.param, x.grad, x.exp_avg, x.exp_avg_sq, x.max_exp_avg_sq);
    const auto grads = load_group(x.grad + first, left, aligned);
    adam_step_of_group(rule, at_this_step(numbers, x), grads, first, left, aligned);
  });
}

template <class S>
struct SquareOf {
  static constexpr int groups = ElementGroup<S>::size;
  const S* x;
  __device__ __forceinline__ auto group(int64_t first, int64_t left) const {
    auto terms = ArrayElement<S>{x}.group(first, left);
#pragma unroll
    for (int j = 0; j < groups; j++) terms.values[j] = mul(terms.values[j], terms.values[j]);
    return terms;
  }
};

// segments[b]: the sum of squares of block b's segment of the gradients.
template <class S>
__global__ void __launch_bounds__(SEGMENT_THREADS)
    square_sums_kernel(TensorPart<GradTensor<S>> part, compute_t<S>* segments) {
  using T = compute_t<S>;
  const int t = own_tensor(part), block = blockIdx.x;
  const GradTensor<S> tensor = part.tensors[t];
  const int64_t begin = static_cast<int64_t>(block - part.first_block[t]) * SUM_SEGMENT;
  const T sum =
      sum_segment_of_block<T>(SquareOf<S>{tensor.grad}, begin, smaller<int64_t>(tensor.count - begin, SUM_SEGMENT));
  if (threadIdx.x == 0) segments[block] = sum;
}

// norms[t]: the root of the sum of tensor t's segments, one tensor per block. (For more than four blocks on a
// multiprocessor ptxas spills a register.)
template <class S>
__global__ void __launch_bounds__(BLOCK_ROW_THREADS, 4)
    tensor_norms_kernel(TensorPart<GradTensor<S>> part, const compute_t<S>* segments, compute_t<S>* norms) {
  using T = compute_t<S>;
  const int t = blockIdx.x, first = part.first_block[t];
  const T* own = segments + first;
  const T sum =
      BlockRow<1, false>(part.first_block[t + 1] - first, 1).template sum<T>([=](int, int64_t s) { return own[s]; });
  if (threadIdx.x == 0) norms[t] = sqrt(sum);
}

template <class T>
struct ClipRule {
  T max_norm;
  const T* norm;
};

// g *= min(max_norm / (norm + 1e-6), 1), always: a NaN norm makes every gradient NaN, as in torch.
template <class S>
__global__ void __launch_bounds__(UPDATE_THREADS)
    clip_gradients_kernel(ClipRule<compute_t<S>> rule, TensorPart<GradTensor<S>> part) {
  using T = compute_t<S>;
  const T factor = min(T(1), div(rule.max_norm, add(*rule.norm, T(1e-6))));
  own_group<S>(part, [&](const GradTensor<S>& x, int64_t first, int64_t left) {
    const bool aligned = are_aligned(x.grad);
    auto grads = load_group(x.grad + first, left, aligned);
#pragma unroll
    for (int j = 0; j < ElementGroup<S>::size; j++) grads.values[j] = narrow<S>(mul(widen(grads.values[j]), factor));
    store_group(x.grad + first, grads, left, aligned);
  });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

// Calls run(part, blocks, first) for part after part of `tensors`, which lie in host memory: `blocks` of `unit`
// elements each, and the number of the part's first tensor.
template <class Tensor, class Run>
cudaError_t in_parts(const Tensor* tensors, int64_t count, int64_t unit, Run&& run) {
  for (int64_t t = 0; t < count;) {
    TensorPart<Tensor> part{};
    const int64_t first = t;
    int64_t blocks = 0;
    for (; t < count && part.count < TensorPart<Tensor>::most; t++) {
      const int64_t more = ceil_div(tensors[t].count, unit);
      if (blocks + more > INT32_MAX) {
        if (part.count == 0) return cudaErrorInvalidConfiguration;
        break;
      }
      part.tensors[part.count++] = tensors[t];
      blocks += more;
      part.first_block[part.count] = static_cast<int>(blocks);
    }
    const cudaError_t error = run(part, blocks, first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class S, class Rule, class Tensor>
cudaError_t update_in_parts(void (*kernel)(Rule, TensorPart<Tensor>), const Rule& rule, const Tensor* tensors,
                            int64_t count, Device device) {
  return in_parts(tensors, count, UPDATES_PER_BLOCK<S>, [&](const auto& part, int64_t blocks, int64_t) {
    return launch(kernel, blocks, UPDATE_THREADS, 0, device, rule, part);
  });
}

// `numbers`: the rule, or where it is in device memory; of Adam AdamNumbers there.
template <class S, class Numbers>
cudaError_t sgd_step(const Numbers& numbers, const SgdTensor<S>* tensors, int64_t count, Device device) {
  return update_in_parts<S>(sgd_step_kernel<S, Numbers>, numbers, tensors, count, device);
}

template <class S, class Numbers>
cudaError_t adam_step(const Numbers& numbers, const AdamTensor<S>* tensors, int64_t count, Device device) {
  return update_in_parts<S>(adam_step_kernel<S, Numbers>, numbers, tensors, count, device);
}

// ---- clipping -------------------------------------------------------------------------------------------------------

template <class S>
int64_t count_segments(const GradTensor<S>* tensors, int64_t count) {
  int64_t segments = 0;
  for (int64_t t = 0; t < count; t++) segments += ceil_div(tensors[t].count, SUM_SEGMENT);
  return segments;
}

// Elements of device memory that gradient_norm() needs: the tensors' norms, the segments of their sum, the tensors'
// segments.
template <class S>
int64_t gradient_norm_workspace(const GradTensor<S>* tensors, int64_t count) {
  return count + sum_terms_workspace(count) + count_segments(tensors, count);
}

template <class T>
struct StoreRoot {
  T* y;
  __device__ __forceinline__ void operator()(T sum) const { *y = sqrt(sum); }
};

// *norm, in device memory: norm of the per-tensor norms; each is the root of a sum, by the sum rule, of squares.
template <class S>
cudaError_t gradient_norm(const GradTensor<S>* tensors, int64_t count, compute_t<S>* norm, compute_t<S>* workspace,
                          Device device) {
  using T = compute_t<S>;
  T *norms = workspace, *of_norms = norms + count, *segments = of_norms + sum_terms_workspace(count);
  const cudaError_t error = in_parts(tensors, count, SUM_SEGMENT, [&](const auto& part, int64_t blocks, int64_t first) {
    const cudaError_t failed = launch(square_sums_kernel<S>, blocks, SEGMENT_THREADS, 0, device, part, segments);
    if (failed != cudaSuccess) return failed;
    const T* sums = segments;
    segments += blocks;
    return launch(tensor_norms_kernel<S>, part.count, BLOCK_ROW_THREADS, block_row_bytes<T>(blocks, 0), device, part,
                  sums, norms + first);
  });
  if (error != cudaSuccess) return error;
  return sum_terms<T>(SquareOf<T>{norms}, count, StoreRoot<T>{norm}, of_norms, device);
}

// `norm`: in device memory, as gradient_norm() leaves it.
template <class S>
cudaError_t clip_gradients(const GradTensor<S>* tensors, int64_t count, compute_t<S> max_norm, const compute_t<S>* norm,
                           Device device) {
  return update_in_parts<S>(clip_gradients_kernel<S>, ClipRule<compute_t<S>>{max_norm, norm}, tensors, count, device);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
