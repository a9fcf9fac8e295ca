// Training steps of a chain of linear layers in one launch: forward pass, loss, backward pass and update, step after
// step, by the blocks of one cluster. train_steps.h says where everything lies.
#pragma once

#include "../numerics/activations.h"
#include "cluster.cuh"
#include "cross_entropy.cuh"
#include "elementwise_loss.cuh"
#include "optimizers.cuh"
#include "train_steps_products.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int STEP_WARPS = STEP_THREADS / WARP;
using StepRow = WarpRow<0, 1>;  // of the predictions
static_assert(steps::MOST_ROWS <= SUM_SEGMENT && steps::MOST_CLASSES <= SUM_SEGMENT);

// What one block does. Between blocks there are the barriers of run() alone.
class StepBlock {
 public:
  __device__ __forceinline__ explicit StepBlock(const TrainSteps& p)
      : p(p), rank(cluster_rank()), warp(threadIdx.x / WARP), shared(dynamic_shared<float>()) {
    float* at = shared + p.work_at;
    work = {at, at + 2 * SLAB, at + steps::WORK};
    segments = at + 2 * SLAB + PARTIALS;
    weight_sum = segments + steps::MOST_SEGMENTS;
  }

  __device__ __forceinline__ void run() {
    for (int l = 0; l < p.layers; l++) exchange(p.layer[l], /*loads=*/true);
    sum_class_weights();
    wait_for_copies();
    __syncthreads();
    int64_t first = 0;  // row of the batch
    for (int step = 0; step < p.steps; first += p.rows[step], step++) {
      const int last = p.layers - 1;
      for (int l = 0; l <= last; l++) {
        forward(step, first, l);
        cluster_barrier();
      }
      compute_loss(step, first);
      cluster_barrier();
      if (rank == 0) store_loss(step, first);
      for (int l = last; l > p.first_trained; l--) {
        backward(step, l);
        if (l > p.first_trained + 1) cluster_barrier();
      }
      cluster_arrive();
      __syncthreads();  // for the gradients that other threads of the block have written
      for (int l = p.first_trained; l <= last; l++) {
        update(step, first, l);
        // Weights may change when all blocks have read them; those of the first layer no other block reads.
        if (l == p.first_trained) cluster_wait();
      }
    }
    __syncthreads();
    for (int l = p.first_trained; l < p.layers; l++)
      if (p.layer[l].weight.is_trained()) exchange(p.layer[l], /*loads=*/false);
  }

 private:
  __device__ __forceinline__ int begin(const StepLayer& layer) const { return rank * layer.own; }
  __device__ __forceinline__ int own(const StepLayer& layer) const {
    return smaller(layer.own, larger(layer.outputs - begin(layer), 0));
  }
  __device__ __forceinline__ float* output(const StepLayer& layer, int step) const {
    return layer.output + step % 2 * layer.output_turn;
  }
  // What the gradient of the layer's activation needs.
  __device__ __forceinline__ const float* saved(const StepLayer& layer, int step) const {
    return layer.saved ? layer.saved : output(layer, step);
  }
  __device__ __forceinline__ const float* input(int step, int64_t first, int l) const {
    return l == 0 ? p.inputs + first * p.layer[0].inputs : output(p.layer[l - 1], step);
  }
  // Array `i` of the optimiser's state for row `n` of the block's weights: in shared memory or where it came from.
  __device__ __forceinline__ float* state(const StepLayer& layer, int i, int n) const {
    if (!layer.weight.state[i]) return nullptr;
    if (!p.keeps_states) return layer.weight.state[i] + int64_t(begin(layer) + n) * layer.inputs;
    return shared + layer.state_at + (i * layer.own + n) * layer.stride;
  }
  __device__ __forceinline__ bool moves_together(const float* rows, int columns) const {
    return columns % 4 == 0 && are_aligned(rows);
  }

  // Loads the block's rows of the weights and their state, or stores them.
  __device__ __forceinline__ void exchange(const StepLayer& layer, bool loads) {
    float* here = shared + layer.weight_at;
    move(layer.weight.value, here, layer, loads);
    if (!p.keeps_states || !layer.weight.is_trained()) return;
    for (int i = 0; i < 3; i++)
      if (layer.weight.state[i]) move(layer.weight.state[i], state(layer, i, 0), layer, loads);
  }
  __device__ __forceinline__ void move(float* matrix, float* here, const StepLayer& layer, bool loads) {
    float* there = matrix + int64_t(begin(layer)) * layer.inputs;
    if (loads)
      return begin_rows(here, layer.stride, own(layer), layer.inputs, moves_together(matrix, layer.inputs), -0.0f,
                        [&](int n) { return there + int64_t(n) * layer.inputs; });
    for (int n = warp; n < own(layer); n += STEP_WARPS)
      for (int k = threadIdx.x % WARP; k < layer.inputs; k += WARP)
        there[int64_t(n) * layer.inputs + k] = here[n * layer.stride + k];
  }

  __device__ __forceinline__ void forward(int step, int64_t first, int l) {
    const StepLayer& layer = p.layer[l];
    if (own(layer) == 0) return;
    const float *x = input(step, first, l), *bias = layer.bias.value;
    float *y = output(layer, step), *z = layer.saved;
    const int K = layer.inputs, N = layer.outputs, from = begin(layer);
    multiply_rows([=](int m) { return x + int64_t(m) * K; }, p.rows[step], K, moves_together(x, K),
                  shared + layer.weight_at, layer.stride, own(layer), work,
                  [&](auto&& each) {
                    with_activation(layer.activation, [&](auto act) {
                      each([&](int m, int n, float sum) {
                        const int64_t at = int64_t(m) * N + from + n;
                        if (bias) sum = add(sum, bias[from + n]);
                        if (z) z[at] = sum;
                        y[at] = decltype(act)::value(sum);
                      });
                    });
                  });
  }

  // ---- the loss -----------------------------------------------------------------------------------------------------

  __device__ __forceinline__ void sum_class_weights() {
    if (!p.of_classes || !p.classes.weight || warp != 0) return;
    const float* weight = p.classes.weight;
    const float sum = sum_segment<float>(p.classes.classes, [=](int i) { return weight[i]; });
    if (threadIdx.x == 0) *weight_sum = sum;
  }

  // dL/dz of the prediction, and the terms of the loss: every warp of the cluster its rows, or every thread its groups.
  __device__ __forceinline__ void compute_loss(int step, int64_t first) {
    const StepLayer& layer = p.layer[p.layers - 1];
    const float* kept = saved(layer, step);
    float* gradient = layer.gradient;
    auto through_activation = [&](int64_t begin, int64_t end, int64_t by) {
      with_activation(layer.activation, [&](auto act) {
        for (int64_t i = begin; i < end; i += by) gradient[i] = decltype(act)::gradient(gradient[i], kept[i]);
      });
    };
    if (p.of_classes) {
      const ClassificationLoss<float> c = class_loss(step, first);
      const ClassTotals<float> totals{{nullptr, divisor(c)}, weight_sum};
      for (int64_t row = rank * STEP_WARPS + warp; row < c.outer; row += cluster_size() * STEP_WARPS) {
        class_indices_row<StepRow>(c, totals, row, RowLosses<float>{nullptr, p.terms});
        through_activation(row * c.classes + threadIdx.x % WARP, (row + 1) * c.classes, WARP);
      }
      return;
    }
    const ElementwiseLossArrays<float> e = elementwise_loss(step, first);
    with_elementwise_loss(e.loss, false, [&](auto loss) {
      const LossTerm<decltype(loss), float> term{e, {nullptr, static_cast<float>(e.count)}};
      constexpr int groups = decltype(term)::groups;
      for (int64_t i = (rank * STEP_THREADS + threadIdx.x) * groups; i < e.count;
           i += cluster_size() * STEP_THREADS * groups) {
        const auto values = term.group(i, e.count - i);
        const int64_t end = smaller<int64_t>(e.count, i + groups);
#pragma unroll
        for (int j = 0; j < groups; j++)
          if (i + j < end) p.terms[i + j] = values.values[j];
        through_activation(i, end, 1);
      }
    });
  }
  __device__ __forceinline__ ClassificationLoss<float> class_loss(int step, int64_t first) const {
    const StepLayer& layer = p.layer[p.layers - 1];
    ClassificationLoss<float> c = p.classes;
    c.outer = p.rows[step], c.inner = 1;
    c.input = output(layer, step), c.input_outer = c.classes;
    c.indices = p.classes.indices + first;
    c.dinput = layer.gradient;
    return c;
  }
  // Of a mean, by any warp.
  __device__ __forceinline__ float divisor(const ClassificationLoss<float>& c) const {
    if (c.weight) return sum_segment<float>(c.outer, TargetWeight<float>{c});
    return static_cast<float>(sum_segment<int64_t>(c.outer, TargetCounts<float>{c}));
  }
  __device__ __forceinline__ ElementwiseLossArrays<float> elementwise_loss(int step, int64_t first) const {
    const StepLayer& layer = p.layer[p.layers - 1];
    ElementwiseLossArrays<float> e{p.elementwise.loss, p.elementwise.reduction, int64_t(p.rows[step]) * layer.outputs,
                                   output(layer, step), p.elementwise.target + first * layer.outputs};
    e.value = p.terms, e.dinput = layer.gradient;
    return e;
  }
  // By one block, from the terms that all have written.
  __device__ __forceinline__ void store_loss(int step, int64_t first) {
    const int64_t count = int64_t(p.rows[step]) * (p.of_classes ? 1 : p.layer[p.layers - 1].outputs);
    const float* terms = p.terms;
    for (int s = warp; s < segments_of(count); s += STEP_WARPS) {
      const int64_t begin = int64_t(s) * SUM_SEGMENT;
      const float sum =
          sum_segment<float>(smaller<int64_t>(count - begin, SUM_SEGMENT), [=](int i) { return terms[begin + i]; });
      if (threadIdx.x % WARP == 0) segments[s] = sum;
    }
    __syncthreads();
    if (warp != 0) return;
    const float sum = sum_array_in_place(segments_of(count), segments);
    const float by = p.of_classes ? divisor(class_loss(step, first)) : static_cast<float>(count);
    const Reduction reduction = p.of_classes ? p.classes.reduction : p.elementwise.reduction;
    if (threadIdx.x == 0) StoreLoss<float>{p.losses + step, reduction, {nullptr, by}}(sum);
  }

  // ---- the backward pass --------------------------------------------------------------------------------------------

  // dL/dz of the layer before, of the block's columns, from that of layer l and the weights of all blocks.
  __device__ __forceinline__ void backward(int step, int l) {
    const StepLayer &layer = p.layer[l], &before = p.layer[l - 1];
    const int columns = own(before), from = begin(before), N = layer.outputs, stride = steps::padded_columns(N);
    if (columns == 0) return;
    float* turned = shared + p.turned_at;  // a row for each of the block's columns of the weights
    for (int n = warp; n < steps::rounded_up(N, 4); n += STEP_WARPS) {
      const int owner = n / layer.own;
      const float* row =
          n < N ? in_peer(shared + layer.weight_at, owner) + (n - owner * layer.own) * layer.stride + from : nullptr;
      for (int k = threadIdx.x % WARP; k < columns; k += WARP) turned[k * stride + n] = row ? row[k] : -0.0f;
    }
    const float *dz = layer.gradient, *kept = saved(before, step);
    float* gradient = before.gradient;
    const int width = before.outputs;
    multiply_rows([=](int m) { return dz + int64_t(m) * N; }, p.rows[step], N, moves_together(dz, N), turned, stride,
                  columns, work,
                  [&](auto&& each) {
                    with_activation(before.activation, [&](auto act) {
                      each([&](int m, int n, float sum) {
                        const int64_t at = int64_t(m) * width + from + n;
                        gradient[at] = decltype(act)::gradient(sum, kept[at]);
                      });
                    });
                  });
  }

  // The gradients of the block's weights and biases, which go into the update at once.
  __device__ __forceinline__ void update(int step, int64_t first, int l) {
    const StepLayer& layer = p.layer[l];
    const int outputs = own(layer), K = layer.inputs, N = layer.outputs, M = p.rows[step];
    if (outputs == 0) return;
    const float *dz = layer.gradient + begin(layer), *x = input(step, first, l);
    if (layer.bias.is_trained())
      for (int n = warp; n < outputs; n += STEP_WARPS) {
        const ElementGroup<float> sum{{sum_segment<float>(M, [=](int m) { return dz[int64_t(m) * N + n]; })}};
        const int64_t at = begin(layer) + n;
        auto state = [&](int i) { return layer.bias.state[i] ? layer.bias.state[i] + at : nullptr; };
        if (threadIdx.x % WARP == 0)
          take_step(step, layer.bias, layer.bias.value + at, state(0), state(1), state(2), sum, 1, false);
      }
    if (!layer.weight.is_trained()) return;
    const bool aligned =
        p.keeps_states || are_aligned(layer.weight.state[0], layer.weight.state[1], layer.weight.state[2]);
    const bool together = aligned && K % 4 == 0;
    multiply_columns([=](int m) { return dz + int64_t(m) * N; }, moves_together(dz, N) && outputs % 4 == 0, outputs,
                     [=](int m) { return x + int64_t(m) * K; }, moves_together(x, K), M, K, work,
                     [&](int n, int k, const float (&sums)[8][4]) {
#pragma unroll
                       for (int j = 0; j < 8; j++) {
                         if (n + j >= outputs) break;
                         auto state = [&](int i) {
                           float* row = this->state(layer, i, n + j);
                           return row ? row + k : nullptr;
                         };
                         const ElementGroup<float> grads{{sums[j][0], sums[j][1], sums[j][2], sums[j][3]}};
                         take_step(step, layer.weight, shared + layer.weight_at + (n + j) * layer.stride + k, state(0),
                                   state(1), state(2), grads, K - k, together);
                       }
                     });
  }
  __device__ __forceinline__ void take_step(int step, const StepParameter& x, float* value, float* state0,
                                            float* state1, float* state2, const ElementGroup<float>& grads, int left,
                                            bool aligned) const {
    if (p.is_adam) {
      const StepNumbers& numbers = p.numbers[step][x.rule];
      const AdamTensor<float> tensor{left,         value, nullptr, state0, state1, state2, numbers.negative_step_size,
                                     numbers.scale};
      adam_step_of_group(p.adam[x.rule], tensor, grads, 0, left, aligned);
    } else {
      const SgdTensor<float> tensor{left, value, nullptr, state0, x.first && step == 0};
      sgd_step_of_group(p.sgd[x.rule], tensor, grads, 0, left, aligned);
    }
  }

  const TrainSteps& p;
  const int rank, warp;
  float* const shared;
  ProductWork work;
  float *segments, *weight_sum;
};

__global__ void __launch_bounds__(STEP_THREADS, 1) train_steps_kernel(TrainSteps p) { StepBlock(p).run(); }

// Floats of device memory that train_steps() needs for batches of at most so many rows.
inline int64_t train_steps_workspace(const TrainSteps& p, int64_t rows) {
  int64_t count = rows * (p.of_classes ? 1 : p.layer[p.layers - 1].outputs) + 4;
  for (int l = 0; l < p.layers; l++)
    count += (steps::rounded_up(static_cast<int>(rows) * p.layer[l].outputs, 4)) *
             int64_t(2 + (l == 0 && p.layers > 1) + saves_input(p.layer[l].activation));
  return count;
}

// Runs the steps of a plan.
inline cudaError_t train_steps(TrainSteps p, int64_t rows, float* workspace, Device device) {
  float* at = workspace;
  for (int l = 0; l < p.layers; l++) {
    StepLayer& layer = p.layer[l];
    const int64_t size = steps::rounded_up(static_cast<int>(rows) * layer.outputs, 4);
    auto take = [&](int arrays) {
      float* taken = at;
      at += arrays * size;
      return taken;
    };
    // Blocks write the first layer's output of a step while others still read that of the step before.
    layer.output_turn = l == 0 && p.layers > 1 ? size : 0;
    layer.output = take(layer.output_turn ? 2 : 1);
    layer.gradient = take(1);
    layer.saved = saves_input(layer.activation) ? take(1) : nullptr;
  }
  p.terms = at;
  return launch_clusters(train_steps_kernel, p.cluster, p.cluster, STEP_THREADS, p.shared_bytes, device, p);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
