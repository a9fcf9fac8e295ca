// How a product is divided among the multiprocessors of a device. The order of its sums depends on K alone, so that
// tiles and parts of K are free.
#pragma once

#include "../cpu/product.h"
#include "product_tile.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Tiles of each C, and parts of K with `chunks` chunks in each; and the distances of rows, matrices and chunks where
// sums are written: chunks are apart only where K is divided.
struct ProductGrid {
  int down, across, parts;
  int64_t chunks, total_row, total_batch, total_chunk;
};

struct ProductPlan {
  int rows, columns;  // of a tile
  ProductGrid grid;
  int64_t blocks, chunks;
  double cycles;
};

// Cycles of a multiprocessor of sm_90 for a tile and one place along K: the instructions of its warps, of which four
// begin at once. One instruction is each fma, each read of shared memory, and about two are for copies and the loop.
// What a small tile's warps wait for shared memory is longer than that. An estimate: nothing here was measured.
constexpr double LARGE_CYCLES = 8 * (64 + 4 + 2) / 4, MEDIUM_CYCLES = 4 * (32 + 3 + 2) / 4, SMALL_CYCLES = 16;
// Another launch; and for a chunk's sum of an element, 8 bytes of 24 in a cycle from the second-level cache.
constexpr double FOLD_CYCLES = 3000, FOLD_CYCLES_PER_SUM = 8.0 / 24;

// K is divided only where the chunks' sums stay below this many elements.
constexpr int64_t MOST_CHUNK_SUMS = int64_t(1) << 26;

// The division with these tiles and about so many parts of K.
template <class Tile, class T>
ProductPlan divide_product(const Product<T>& p, int64_t chunks, int64_t parts, double cycles, int multiprocessors) {
  ProductPlan plan{Tile::rows, Tile::columns, {}, 0, chunks, 0};
  const int64_t down = ceil_div(p.M, Tile::rows), across = ceil_div(p.N, Tile::columns);
  plan.grid = {static_cast<int>(down), static_cast<int>(across), 0, ceil_div(chunks, parts), p.c_row, p.c_batch, 0};
  plan.grid.parts = static_cast<int>(ceil_div(chunks, plan.grid.chunks));
  plan.blocks = down * across * p.batch * plan.grid.parts;
  const auto depth = static_cast<double>(smaller(p.K, plan.grid.chunks * PRODUCT_CHUNK) + 1);
  plan.cycles = static_cast<double>(ceil_div(plan.blocks, multiprocessors)) * depth * cycles;
  if (plan.grid.parts == 1) return plan;
  plan.grid.total_row = p.N;
  plan.grid.total_batch = p.M * p.N;
  plan.grid.total_chunk = p.batch * p.M * p.N;
  plan.cycles +=
      FOLD_CYCLES + FOLD_CYCLES_PER_SUM * static_cast<double>(chunks * p.batch * p.M * p.N / multiprocessors);
  return plan;
}

// The fastest division, by that estimate.
template <class T>
ProductPlan plan_product(const Product<T>& p, Device device) {
  const int64_t chunks = p.K > 0 ? ceil_div(p.K, PRODUCT_CHUNK) : 1;
  ProductPlan best{};
  auto consider = [&](const ProductPlan& plan) {
    if (best.blocks == 0 || plan.cycles < best.cycles) best = plan;
  };
  const int64_t most_parts = chunks * p.batch * p.M * p.N <= MOST_CHUNK_SUMS ? chunks : 1;
  for (int64_t parts = 1;; parts = smaller(2 * parts, most_parts)) {
    if constexpr (sizeof(T) == 4) {
      consider(divide_product<LargeTile>(p, chunks, parts, LARGE_CYCLES, device.multiprocessors));
      consider(divide_product<MediumTile>(p, chunks, parts, MEDIUM_CYCLES, device.multiprocessors));
    }
    consider(divide_product<SmallTile>(p, chunks, parts, SMALL_CYCLES, device.multiprocessors));
    if (parts >= most_parts) return best;
  }
}

// How an operand of these strides is copied.
INLINE_HD Major major_of(int64_t line_stride, int64_t depth_stride) {
  return depth_stride == 1 && line_stride != 1 ? Major::depth : Major::lines;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
