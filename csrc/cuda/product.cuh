// Matrix products in the contract's order (order.h): a block computes a tile of C, chunk after chunk of K, and adds
// each chunk's sums to those in C; or one part of K alone, when a second kernel adds the chunks (split-K).
//
// Chunk totals are in C because twice the tile's sums do not fit the registers.
#pragma once

#include "batch_offsets.cuh"
#include "product_plan.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Whether the last sums are finished where they are added: with the bias and relu alone. Other activations, and a
// wanted preactivation, are left to finish().
template <class T>
INLINE_HD bool finishes_in_place(const Product<T>& p) {
  return !p.preactivation && (p.activation == Activation::none || p.activation == Activation::relu);
}

// C and preactivation from what this thread has written to its part of C. Not unrolled but for the groups of columns:
// seven activations times 64 elements are more code than the product.
template <class Tile, class T>
__device__ __forceinline__ void finish(const Product<T>& p, T* C, T* preactivation, const TileEdge& edge) {
  using Sums = TileSums<Tile, T>;
  constexpr int together = Sums::together, groups = Tile::thread_columns / together;
  with_activation(p.activation, [&](auto act) {
#pragma unroll 1
    for (int g = 0; g < Tile::thread_rows * groups; g++) {
      const int row = Sums::row(threadIdx.x, g / groups), column = Sums::column(threadIdx.x, g % groups * together);
      const int64_t left = row < edge.rows ? edge.columns - column : 0, at = row * p.c_row + column;
      auto y = load_group(C + at, left, edge.whole);
      if (preactivation) store_group(preactivation + at, y, left, edge.whole && are_aligned(preactivation));
#pragma unroll
      for (int e = 0; e < together; e++) y.values[e] = act.value(y.values[e]);
      store_group(C + at, y, left, edge.whole);
    }
  });
}

// `total`: C; or (chunks, batch, M, N), where each chunk's sums are left for fold_chunks_kernel.
template <class Tile, Major a_major, Major b_major, class T>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    product_kernel(Product<T> p, ProductGrid grid, T* total) {
  __shared__ Step<Tile, T> steps[2];
  constexpr int STEPS = PRODUCT_CHUNK / Tile::depth;
  const TileAt tile_of = tile_at(grid, blockIdx.x);
  const int64_t m = static_cast<int64_t>(tile_of.down) * Tile::rows;
  const int64_t n = static_cast<int64_t>(tile_of.across) * Tile::columns;
  const int64_t part = tile_of.batch % grid.parts, batch = tile_of.batch / grid.parts;
  const int64_t begin = part * grid.chunks * PRODUCT_CHUNK;
  const int64_t end = smaller(p.K, begin + grid.chunks * PRODUCT_CHUNK);

  const T* a_data = p.A.data + (p.a_offset ? p.a_offset[batch] : 0) + m * p.A.row + begin * p.A.column;
  const T* b_data = p.B.data + (p.b_offset ? p.b_offset[batch] : 0) + begin * p.B.row + n * p.B.column;
  OperandCopy<Tile, Tile::rows, a_major, T> a(a_data, p.A.row, p.A.column, p.M - m, steps[0].a);
  OperandCopy<Tile, Tile::columns, b_major, T> b(b_data, p.B.column, p.B.row, p.N - n, steps[0].b);
  // Steps, the depth of the last one, and how many are whole.
  const int count = end > begin ? static_cast<int>(ceil_div(end - begin, Tile::depth)) : 1;
  const int tail = static_cast<int>(end - begin - (count - 1) * int64_t(Tile::depth));
  const bool whole = a.is_whole(a_data) && b.is_whole(b_data);
  auto begin_step = [&](int s) {
    const int depth = s + 1 < count ? Tile::depth : tail;
    if (whole && depth == Tile::depth) {
      a.begin_whole();
      b.begin_whole();
    } else {  // +0 times -0 is -0, which changes no sum
      a.begin_part(depth, T(0));
      b.begin_part(depth, neg(T(0)));
    }
  };

  const bool split = grid.total_chunk != 0;
  total += part * grid.chunks * grid.total_chunk + batch * grid.total_batch + m * grid.total_row + n;
  auto edge_at = [&](const T* corner) {
    const bool whole = a.lines == Tile::rows && b.lines == Tile::columns;
    return TileEdge{a.lines, b.lines, whole && are_aligned(corner) && grid.total_row % (16 / sizeof(T)) == 0};
  };

  TileSums<Tile, T> tile;
  typename TileSums<Tile, T>::Places places(steps[0]);
  tile.clear();
  begin_step(0);
  int other = sizeof(Step<Tile, T>);  // how far the other step is from that which is multiplied
  for (int s = 1;; s++) {
    wait_for_copies();
    __syncthreads();  // every thread's copies are there, and what the next ones overwrite has been read
    a.to.move(other);
    b.to.move(other);
    if (s < count) begin_step(s);
    tile.multiply(places);
    places.a.move(other);
    places.b.move(other);
    other = -other;
    const bool last = s >= count;
    if (!last && s % STEPS != 0) continue;
    const TileEdge edge = edge_at(total);
    const bool first = split || (s <= STEPS && !p.accumulates);
    if (!first) tile.add_to(total, grid.total_row, edge);
    if (last && !split && p.bias) tile.add_bias(p.bias + n, edge);
    if (last && !split && p.activation == Activation::relu && !p.preactivation) tile.apply_relu();
    tile.store(total, grid.total_row, edge);
    if (last) break;
    tile.clear();
    total += grid.total_chunk;
  }
  if (split || finishes_in_place(p)) return;
  T* preactivation = p.preactivation ? p.preactivation + (total - p.C) : nullptr;
  finish<Tile>(p, total, preactivation, edge_at(total));
}

// C from the chunks' sums, left to right: a thread has a group of columns. `aligned`: so are groups of the sums, C and
// preactivation.
template <class T>
__global__ void fold_chunks_kernel(Product<T> p, int64_t chunks, bool aligned, const T* chunk_sums) {
  constexpr int together = ElementGroup<T>::size;
  const int64_t groups = ceil_div(p.N, together), i = global_thread(), line = i / groups;
  if (line >= p.batch * p.M) return;
  const int64_t batch = p.batch == 1 ? 0 : line / p.M, column = (i - line * groups) * together, left = p.N - column;
  const int64_t at = batch * p.c_batch + (line - batch * p.M) * p.c_row + column, distance = p.batch * p.M * p.N;
  const T* sums = chunk_sums + line * p.N + column;
  auto total = load_group(p.accumulates ? p.C + at : sums, left, aligned);
  for (int64_t c = p.accumulates ? 0 : 1; c < chunks; c++) {
    const auto next = load_group(sums + c * distance, left, aligned);
#pragma unroll
    for (int e = 0; e < together; e++) total.values[e] = add(total.values[e], next.values[e]);
  }
#pragma unroll
  for (int e = 0; e < together; e++)
    if (p.bias && e < left) total.values[e] = add(total.values[e], p.bias[column + e]);
  if (p.preactivation) store_group(p.preactivation + at, total, left, aligned);
  with_activation(p.activation, [&](auto act) {
#pragma unroll
    for (int e = 0; e < together; e++) total.values[e] = act.value(total.values[e]);
  });
  store_group(p.C + at, total, left, aligned);
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class T>
bool is_empty(const Product<T>& p) {
  return p.M <= 0 || p.N <= 0 || p.batch <= 0;
}

// Elements of device memory that product() needs beside its arguments.
template <class T>
int64_t product_workspace(const Product<T>& p, Device device) {
  if (is_empty(p)) return 0;
  const ProductPlan plan = plan_product(p, device);
  return plan.grid.parts > 1 ? plan.chunks * p.batch * p.M * p.N : 0;
}

template <class Tile, class T>
cudaError_t launch_product(const Product<T>& p, const ProductPlan& plan, T* chunk_sums, Device device) {
  auto launch_with = [&](auto kernel) {
    return launch(kernel, plan.blocks, Tile::threads, 0, device, p, plan.grid, chunk_sums ? chunk_sums : p.C);
  };
  constexpr Major depth = Major::depth, lines = Major::lines;
  const bool a_turns = major_of(p.A.row, p.A.column) == depth, b_turns = major_of(p.B.column, p.B.row) == depth;
  if (a_turns && b_turns) return launch_with(product_kernel<Tile, depth, depth, T>);
  if (a_turns) return launch_with(product_kernel<Tile, depth, lines, T>);
  if (b_turns) return launch_with(product_kernel<Tile, lines, depth, T>);
  return launch_with(product_kernel<Tile, lines, lines, T>);
}

// As Product says; every pointer, a_offset and b_offset too, is one to device memory.
template <class T>
cudaError_t product(const Product<T>& p, T* workspace, Device device) {
  if (is_empty(p)) return cudaSuccess;
  const ProductPlan plan = plan_product(p, device);
  T* chunk_sums = plan.grid.parts > 1 ? workspace : nullptr;
  cudaError_t error;
  if constexpr (sizeof(T) == 4) {
    if (plan.rows == LargeTile::rows)
      error = launch_product<LargeTile>(p, plan, chunk_sums, device);
    else if (plan.rows == MediumTile::rows)
      error = launch_product<MediumTile>(p, plan, chunk_sums, device);
    else
      error = launch_product<SmallTile>(p, plan, chunk_sums, device);
  } else {
    error = launch_product<SmallTile>(p, plan, chunk_sums, device);
  }
  if (error != cudaSuccess || !chunk_sums) return error;
  constexpr int threads = 256, together = ElementGroup<T>::size;
  const bool aligned =
      are_aligned(chunk_sums, p.C, p.preactivation) && p.N % together + p.c_row % together + p.c_batch % together == 0;
  return launch(fold_chunks_kernel<T>, ceil_div(p.batch * p.M * ceil_div(p.N, together), threads), threads, 0, device,
                p, plan.chunks, aligned, static_cast<const T*>(chunk_sums));
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
