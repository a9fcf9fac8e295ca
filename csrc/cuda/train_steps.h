// Training steps of a chain of linear layers as one launch: its arguments, and which models fit.
//
// The blocks of a cluster divide the outputs of every layer among themselves. A block has its rows of the weights, and
// the optimiser's state of these where there is room, in shared memory during all steps of the launch. Activations and
// their gradients go from block to block through device memory, which the second-level cache holds.
#pragma once

#include "../cpu/cross_entropy.h"
#include "../cpu/elementwise_loss.h"
#include "../cpu/optimizers.h"
#include "../numerics/order.h"

namespace pytorch_ext {

// A weight or a bias.
struct StepParameter {
  float* value = nullptr;  // null: the layer has none
  float* state[3] = {};    // SGD's momentum buffer, or Adam's averages; null where there is none
  int rule = -1;           // of TrainSteps, which updates it; -1: none does
  bool first = false;      // the momentum buffer holds nothing yet
  INLINE_HD bool is_trained() const { return rule >= 0; }
};

struct StepLayer {
  int inputs, outputs;
  Activation activation;
  StepParameter weight, bias;
  int own;                   // outputs of a block: the block of rank r has those from r * own on
  int stride;                // floats from row to row of weights in shared memory
  int weight_at, state_at;   // where these are there
  float *output, *gradient;  // (rows, outputs) in device memory: f(z) and dL/dz
  float* saved;              // z, where the activation's gradient needs that; else null
  int64_t output_turn = 0;   // floats from the output of even steps to that of odd ones
};

// Adam's numbers of a step.
struct StepNumbers {
  float negative_step_size, scale;
};

// All of them travel as a kernel's arguments.
struct TrainSteps {
  static constexpr int most_layers = 8, most_rules = 4, most_steps = 64;
  int layers = 0;
  StepLayer layer[most_layers];
  int first_trained = 0;  // the first layer that is

  bool is_adam;
  int rules = 0;  // those of parameters that have the same options and have taken equally many steps
  SgdRule<float> sgd[most_rules];
  AdamRule<float> adam[most_rules];
  StepNumbers numbers[most_steps][most_rules];

  // The arguments that all steps have in common: of a loss of class indices, else of an elementwise one.
  bool of_classes;
  ClassificationLoss<float> classes;
  ElementwiseLossArrays<float> elementwise;

  int steps;
  int rows[most_steps];  // of each batch
  const float* inputs;   // of all batches, one behind the other, as are the targets
  float* losses;         // of every step
  float* terms;          // of a step's loss

  // The plan.
  int cluster;        // blocks
  bool keeps_states;  // in shared memory
  int turned_at, work_at;
  int64_t shared_bytes;
};

static_assert(sizeof(TrainSteps) <= 4096 - 64);

namespace steps {

constexpr int THREADS = 256;
constexpr int SLAB = 8704;      // floats: room for 64 rows of 4 x 32 columns, and 4 more
constexpr int PARTIALS = 4096;  // 16 sums of each thread
constexpr int MOST_SEGMENTS = 64;
constexpr int MOST_OUTPUTS = 4 * THREADS;             // of a block in a layer
constexpr int MOST_ROWS = 4096, MOST_CLASSES = 4096;  // sums of one segment
// What a block needs beside weights and states: two slabs, sums of chunks, segments of a loss, and the sum of class
// weights. Behind that come the sums of groups of chunks, where a product has several chunks.
constexpr int WORK = 2 * SLAB + PARTIALS + MOST_SEGMENTS + 4;

// A block multiplies some 64 numbers a cycle. With fewer of them than the first number it mostly waits, and more blocks
// would wait for each other; with more than the second one the whole device is faster than a cluster. Estimates.
constexpr int64_t ENOUGH_FOR_A_BLOCK = int64_t(1) << 17, MOST_FOR_A_BLOCK = int64_t(1) << 22;

INLINE_HD int rounded_up(int n, int to) { return (n + to - 1) / to * to; }

// Rows of so many columns: whole groups of 16 bytes, an odd number of them, so that neighbouring rows differ in banks.
INLINE_HD int padded_columns(int columns) {
  const int groups = (columns + 3) / 4;
  return 4 * (groups % 2 ? groups : groups + 1);
}

// What the device gives a launch.
struct Room {
  int64_t shared_bytes;
  int most_blocks;  // of a cluster
};

inline int state_arrays(const StepParameter& x) {
  int count = 0;
  for (const float* state : x.state) count += state != nullptr;
  return x.is_trained() ? count : 0;
}

// Places everything for a cluster of so many blocks; the bytes of shared memory.
inline int64_t place(TrainSteps& p, int blocks, bool keeps_states) {
  int64_t at = 0, turned = 0, totals = 0;
  for (int l = 0; l < p.layers; l++) {
    StepLayer& layer = p.layer[l];
    layer.own = (layer.outputs + blocks - 1) / blocks;
    layer.stride = padded_columns(layer.inputs);
    layer.weight_at = static_cast<int>(at);
    at += int64_t(rounded_up(layer.own, 4)) * layer.stride;
    layer.state_at = static_cast<int>(at);
    if (keeps_states) at += int64_t(state_arrays(layer.weight)) * layer.own * layer.stride;
    if (layer.inputs > PYTORCH_EXT_ISA::PRODUCT_CHUNK || layer.outputs > PYTORCH_EXT_ISA::PRODUCT_CHUNK)
      totals = PARTIALS;
    if (l > p.first_trained) {
      const int64_t floats = int64_t(rounded_up(p.layer[l - 1].own, 4)) * padded_columns(layer.outputs);
      turned = turned < floats ? floats : turned;
    }
    if (at > INT32_MAX / 8 || layer.own > MOST_OUTPUTS) return INT64_MAX;
  }
  p.turned_at = static_cast<int>(at);
  p.work_at = static_cast<int>(at + turned);
  p.cluster = blocks;
  p.keeps_states = keeps_states;
  p.shared_bytes = (at + turned + WORK + totals) * static_cast<int64_t>(sizeof(float));
  return p.shared_bytes;
}

// Multiplications of a step: forward, weight gradients, input gradients.
inline int64_t multiplications(const TrainSteps& p, int64_t rows) {
  int64_t count = 0;
  for (int l = 0; l < p.layers; l++) {
    const int64_t product = rows * p.layer[l].inputs * p.layer[l].outputs;
    count += product * (1 + p.layer[l].weight.is_trained() + (l > p.first_trained));
  }
  return count;
}

// Chooses the blocks of the cluster and what they keep, for batches of at most so many rows. What does not fit, or
// would be slower than on the whole device, has no plan: the reason, or null. With `exactly` so many blocks, not zero,
// it only has to fit.
inline const char* plan(TrainSteps& p, int64_t rows, const Room& room, int exactly) {
  const int64_t outputs = p.layer[p.layers - 1].outputs;
  if (p.of_classes && outputs > MOST_CLASSES) return "there are too many classes";
  if (rows > MOST_ROWS || (!p.of_classes && rows * outputs > int64_t(MOST_ROWS) * MOST_SEGMENTS))
    return "the batch is too large";
  const int64_t work = multiplications(p, rows);
  bool fits = false;
  for (int blocks = exactly ? exactly : 1; blocks <= room.most_blocks; blocks *= 2) {
    fits = place(p, blocks, true) <= room.shared_bytes || place(p, blocks, false) <= room.shared_bytes;
    if (fits && (exactly || work / blocks <= ENOUGH_FOR_A_BLOCK)) return nullptr;
    if (exactly) break;
  }
  if (!fits) return "the weights do not fit the shared memory of a cluster";
  return work / p.cluster <= MOST_FOR_A_BLOCK ? nullptr : "a step is more work than a cluster should have";
}

}  // namespace steps
}  // namespace pytorch_ext
