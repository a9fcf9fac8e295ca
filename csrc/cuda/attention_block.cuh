// scaled_dot_product_attention in float32 and one launch: a block keeps the scores of some queries in shared memory,
// turns them into weights there, and multiplies these by the values.
//
// What is in shared memory lies as a step of a product does (product_tile.cuh), element (query, k) at [k][query]: the
// scaled queries, whose k is the width; the scores, whose k is the key. So both products take their left operand from
// where it is, while the right one comes step by step; and the threads of a warp, which sum up rows of neighbouring
// queries, meet in no bank.
#pragma once

#include "../cpu/scaled_dot_product_attention.h"
#include "../numerics/functions.h"
#include "product_tile.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <int Queries>
using AttentionTile = Tile<Queries, 64, Queries / LANES_DOWN, 4, 2>;
constexpr int ATTENTION_THREADS = AttentionTile<32>::threads;

// What a block has in shared memory, in floats.
template <int Queries>
struct AttentionShared {
  using Steps = StepOf<AttentionTile<Queries>, float, AttentionTile<Queries>::columns>;
  static constexpr int pitch = StepOf<AttentionTile<Queries>, float, Queries>::width;
  static constexpr int parts = ATTENTION_THREADS / Queries;  // threads for a query
  int queries, scores, steps, largest, sums, all;

  static INLINE_HD int whole_steps(int64_t depth) {
    constexpr int step = AttentionTile<Queries>::depth;
    return static_cast<int>(ceil_div(depth, step) * step);
  }
  INLINE_HD AttentionShared(int64_t width, int64_t keys) {
    queries = 0;
    scores = queries + whole_steps(width) * pitch;
    steps = scores + whole_steps(keys) * pitch;
    largest = steps + 2 * sizeof(Steps) / sizeof(float);
    sums = largest + 2 * ATTENTION_THREADS;  // a flag comes with each
    all = sums + ATTENTION_THREADS;
  }
};

// The product of a left operand in shared memory, +0 beyond `depth` up to whole steps, and a right one in memory, tile
// after tile of its lines: calls finish(line, sums, first, last) for a chunk of a tile, whether it is the tile's first
// or last one. The left operand may be written until the call, and both are read until the next barrier after it.
template <class Tile, Major major, class T, class Finish>
__device__ __forceinline__ void multiply_resident(const T* left, const MatrixView<T>& right, int lines, int depth,
                                                  StepOf<Tile, T, Tile::columns>* steps, Finish&& finish) {
  // `right` has its lines in rows.
  using Copy = OperandCopy<Tile, Tile::columns, major, T>;
  constexpr int STEPS = PRODUCT_CHUNK / Tile::depth, width = StepOf<Tile, T, Tile::rows>::width;
  auto copy_of = [&](int line, int step) {
    return Copy(right.data + line * right.row, right.row, right.column, lines - line, steps[step % 2]);
  };
  const int in_tile = static_cast<int>(ceil_div(depth, Tile::depth));
  Copy copy = copy_of(0, 0);
  bool whole = copy.is_whole(right.data);
  int copied_line = 0, copied = 0;  // the tile of the next step to be copied, and its number in there
  auto begin_step = [&](int step) {
    if (copied == in_tile) {
      copied = 0;
      copied_line += Tile::columns;
      copy = copy_of(copied_line, step);
      whole = copy.is_whole(right.data + copied_line * right.row);
    } else if (step > 0) {
      constexpr int bytes = sizeof(steps[0]);
      copy.to.move(step % 2 ? bytes : -bytes);
    }
    const int rest = depth - copied * Tile::depth;
    if (whole && rest >= Tile::depth)
      copy.begin_whole();
    else
      copy.begin_part(rest, neg(T(0)));
    copied++;
  };

  TileSums<Tile, T> sums;
  const int count = static_cast<int>(ceil_div(lines, Tile::columns)) * in_tile;
  int line = 0, s = 0;  // of what is multiplied
  begin_step(0);
  for (int step = 0; step < count; step++) {
    wait_for_copies();
    __syncthreads();  // every thread's copies are there, and what the next ones overwrite has been read
    if (step + 1 < count) begin_step(step + 1);
    if (s % STEPS == 0) sums.clear();
    sums.multiply({left + s * Tile::depth * width, &steps[step % 2].at[0][0]});
    const bool last = ++s == in_tile;
    if (!last && s % STEPS != 0) continue;
    finish(line, sums, s <= STEPS, last);
    if (!last) continue;
    s = 0;
    line += Tile::columns;
  }
}

// The queries of a block: `count` from `begin` on, which see `keys` keys or fewer.
struct QueryBlock {
  int64_t head, begin;
  int count, keys;
};

// Scores of a tile, whose keys begin at `first`, with the masks applied, to shared memory.
template <int Queries>
__device__ __forceinline__ void store_scores(const Attention<float>& p, const QueryBlock& block, int first,
                                             TileSums<AttentionTile<Queries>, float>& tile, float* scores) {
  using Sums = TileSums<AttentionTile<Queries>, float>;
  constexpr int together = Sums::RowLines::group, pitch = AttentionShared<Queries>::pitch;
  constexpr float nothing = -POSITIVE_INFINITY;
  const int row = Sums::row(threadIdx.x, 0), column = first + Sums::column(threadIdx.x, 0);
  auto apply = [&](auto&& f) {  // x = f(x, query, key) for those that exist
#pragma unroll
    for (int i = 0; i < Queries / LANES_DOWN; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int in_block = row + Sums::RowLines::line(0, i), key = column + j;
        if (in_block < block.count && key < block.keys)
          tile.sums[i][j] = f(tile.sums[i][j], block.begin + in_block, key);
      }
  };
  if (p.is_causal) apply([](float x, int64_t query, int key) { return key > query ? nothing : x; });
  if (p.added.first.data) {
    const MatrixView<float> added = p.added.of(block.head);
    apply([&](float x, int64_t query, int key) { return add(x, added.data[query * added.row + key * added.column]); });
  } else if (p.allowed.first.data) {
    const MatrixView<unsigned char> allowed = p.allowed.of(block.head);
    apply([&](float x, int64_t query, int key) {
      return add(x, allowed.data[query * allowed.row + key * allowed.column] == 0 ? nothing : 0.0f);
    });
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (column + j >= block.keys) continue;
#pragma unroll
    for (int i = 0; i < Queries / LANES_DOWN; i += together) {
      Neighbours<float, together> group;
#pragma unroll
      for (int e = 0; e < together; e++) group.values[e] = tile.sums[i + e][j];
      *reinterpret_cast<Neighbours<float, together>*>(scores + (column + j) * pitch + row +
                                                      Sums::RowLines::line(0, i)) = group;
    }
  }
}

// Scores become weights, by the row sums' order (order.h): the i-th thread of a query has its keys that are i modulo
// the number of threads, and so whole lanes. Of the keys only the first `computed` have a score; the others are hidden.
// Beyond the keys the weights of a whole step are +0.
template <int Queries>
__device__ __forceinline__ void weigh_scores(const QueryBlock& block, int computed, bool masked, float* scores,
                                             float* largest, float* sums) {
  using Shared = AttentionShared<Queries>;
  constexpr int parts = Shared::parts, lanes_each = SUM_LANES / parts;
  constexpr float nothing = -POSITIVE_INFINITY;
  const int query = threadIdx.x % Queries, part = threadIdx.x / Queries;
  float* const own = scores + query;
  float* const sees = largest + ATTENTION_THREADS;
  float max_own = nothing, sees_own = 0;
#pragma unroll 4
  for (int key = part; key < computed; key += parts) {
    const float x = own[key * Shared::pitch];
    max_own = max(x, max_own);
    if (!equal(x, nothing)) sees_own = 1;
  }
  largest[threadIdx.x] = max_own;
  sees[threadIdx.x] = sees_own;
  __syncthreads();
  bool hidden = masked;
  float most = largest[query];
#pragma unroll
  for (int i = 0; i < parts; i++) {
    most = max(largest[i * Queries + query], most);
    hidden = hidden && equal(sees[i * Queries + query], 0.0f);
  }
  most = add(most, 0.0f);

  float lanes[lanes_each] = {};
  for (int first = part; first < block.keys; first += SUM_LANES) {
#pragma unroll
    for (int l = 0; l < lanes_each; l++) {
      const int key = first + l * parts;
      if (key < block.keys) {
        float& x = own[key * Shared::pitch];
        x = exp_nonpositive(sub(key < computed ? x : nothing, most));
        lanes[l] = add(lanes[l], x);
      }
    }
  }
#pragma unroll
  for (int width = lanes_each / 2; width >= 1; width /= 2)
#pragma unroll
    for (int l = 0; l < lanes_each / 2; l++)
      if (l < width) lanes[l] = add(lanes[l], lanes[l + width]);
  sums[threadIdx.x] = lanes[0];
  __syncthreads();
  float folded[parts];
#pragma unroll
  for (int i = 0; i < parts; i++) folded[i] = sums[i * Queries + query];
#pragma unroll
  for (int width = parts / 2; width >= 1; width /= 2)
#pragma unroll
    for (int i = 0; i < width; i++) folded[i] = add(folded[i], folded[i + width]);
  const float inverse = div(1.0f, folded[0]);
#pragma unroll 4
  for (int key = part; key < Shared::whole_steps(block.keys); key += parts) {
    float& x = own[key * Shared::pitch];
    x = hidden || key >= block.keys ? 0.0f : mul(x, inverse);
  }
}

template <int Queries>
__global__ void __launch_bounds__(ATTENTION_THREADS, AttentionTile<Queries>::blocks)
    attention_block_kernel(AttentionOutput<float> call, int64_t blocks) {
  using Tile = AttentionTile<Queries>;
  using Shared = AttentionShared<Queries>;
  static_assert(Tile::threads == ATTENTION_THREADS && QUERIES_PER_BLOCK % Queries == 0);
  const Attention<float>& p = call.of;
  QueryBlock block{blockIdx.x / blocks, blockIdx.x % blocks * Queries, 0, 0};
  block.count = static_cast<int>(smaller<int64_t>(p.queries - block.begin, Queries));
  const int64_t seen = smaller((block.begin / QUERIES_PER_BLOCK + 1) * QUERIES_PER_BLOCK, p.queries);
  block.keys = static_cast<int>(p.is_causal ? smaller(p.keys, seen) : p.keys);
  const bool masked = p.added.first.data || p.allowed.first.data;
  // What causality hides from all of the block's queries needs no score, unless a mask is added to it.
  const int computed = p.is_causal && !p.added.first.data
                           ? static_cast<int>(smaller<int64_t>(block.keys, block.begin + block.count))
                           : block.keys;

  const Shared at(p.width, block.keys);
  float *const shared = dynamic_shared<float>(), *const queries = shared + at.queries,
               *const scores = shared + at.scores;
  auto* const steps = reinterpret_cast<typename Shared::Steps*>(shared + at.steps);
  const MatrixView<float> q = p.q.of(block.head), k = p.k.of(block.head), v = p.v.of(block.head);
  // A warp takes 8 places along k of 4 queries, as in OperandCopy.
  for (int i = threadIdx.x; i < Queries * Shared::whole_steps(p.width); i += ATTENTION_THREADS) {
    const int query = i / 8 % Queries, c = i % 8 + i / 8 / Queries * 8;
    const bool exists = query < block.count && c < p.width;
    queries[c * Shared::pitch + query] =
        exists ? mul(q.data[(block.begin + query) * q.row + c * q.column], p.scale) : 0.0f;
  }
  multiply_resident<Tile, Major::depth>(queries, k, computed, static_cast<int>(p.width), steps,
                                        [&](int first, TileSums<Tile, float>& sums, bool, bool) {
                                          store_scores<Queries>(p, block, first, sums, scores);
                                        });
  __syncthreads();
  weigh_scores<Queries>(block, computed, masked, scores, shared + at.largest, shared + at.sums);

  float* const output = call.output + (block.head * p.queries + block.begin) * p.value_width;
  const int columns = static_cast<int>(p.value_width);
  TileSums<Tile, float> total;
  multiply_resident<Tile, Major::lines>(
      scores, MatrixView<float>{v.data, v.column, v.row}, columns, block.keys, steps,
      [&](int first, const TileSums<Tile, float>& sums, bool is_first, bool last) {
        if (is_first)
          total = sums;
        else
          total.add_sums(sums);
        if (!last) return;
        const bool whole = block.count == Queries && columns - first >= Tile::columns && columns % 4 == 0;
        const TileEdge edge{block.count, columns - first, whole && are_aligned(call.output)};
        total.store(output + first, p.value_width, edge);
      });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

struct AttentionBlocks {
  int queries;  // of a block; 0 where no block's scores fit
  int64_t shared_bytes;
};

template <int Queries>
AttentionBlocks attention_blocks_of(const Attention<float>& p) {
  const int64_t keys = p.is_causal ? smaller(p.keys, p.queries) : p.keys;
  return {Queries, AttentionShared<Queries>(p.width, keys).all * static_cast<int64_t>(sizeof(float))};
}

// The most queries of which two blocks fit on a multiprocessor, but for 16, or else of which one does; fewer where
// multiprocessors or half of the block would be idle. An estimate: nothing here was measured.
inline AttentionBlocks attention_blocks(const Attention<float>& p, Device device) {
  if (p.width < 1 || p.width > PRODUCT_CHUNK || p.keys < 1 || p.keys > SUM_SEGMENT) return {0, 0};
  const AttentionBlocks by_size[] = {attention_blocks_of<64>(p), attention_blocks_of<32>(p),
                                     attention_blocks_of<16>(p)};
  auto is_least = [&](const AttentionBlocks& b) { return b.queries == by_size[2].queries; };
  auto is_busy = [&](const AttentionBlocks& b) {
    return p.queries > b.queries / 2 && p.heads * ceil_div(p.queries, b.queries) >= device.multiprocessors;
  };
  const int64_t of_two = (device.shared_bytes + 1024) / 2 - 1024;  // the device keeps 1024 for each block
  for (const auto& b : by_size)
    if (!is_least(b) && is_busy(b) && b.shared_bytes <= of_two) return b;
  for (const auto& b : by_size)
    if ((is_least(b) || is_busy(b)) && b.shared_bytes <= device.shared_bytes) return b;
  return {0, 0};
}

// T is float: a template, so that what has other types compiles none of these kernels.
template <class T>
cudaError_t launch_attention(const AttentionOutput<T>& call, const AttentionBlocks& blocks, Device device) {
  const int64_t in_head = ceil_div(call.of.queries, blocks.queries);
  auto launch_with = [&](auto kernel) {
    return launch(kernel, call.of.heads * in_head, ATTENTION_THREADS, blocks.shared_bytes, device, call, in_head);
  };
  if (blocks.queries == 64) return launch_with(attention_block_kernel<64>);
  if (blocks.queries == 32) return launch_with(attention_block_kernel<32>);
  return launch_with(attention_block_kernel<16>);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
