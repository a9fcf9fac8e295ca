// Matrix products in the contract's order (order.h): a block computes a tile of C, chunk after chunk of K, and adds
// each chunk's sums to those in C; or one chunk of K alone, when a second kernel adds the chunks (split-K).
//
// Chunk totals are in C because twice the tile's sums do not fit the registers.
#pragma once

#include "../cpu/product.h"
#include "../numerics/activations.h"
#include "../numerics/order.h"
#include "batch_offsets.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A block's tile of C, and the part of it that a thread sums in registers.
template <int Rows, int Columns, int ThreadRows, int ThreadColumns>
struct Tile {
  static constexpr int rows = Rows, columns = Columns, depth = 8;
  static constexpr int thread_rows = ThreadRows, thread_columns = ThreadColumns;
  static constexpr int across = Columns / ThreadColumns, threads = Rows / ThreadRows * across;
  static_assert(PRODUCT_CHUNK % depth == 0);
};
using LargeTile = Tile<128, 128, 8, 8>;
using SmallTile = Tile<32, 32, 2, 4>;

// How a product is divided: tiles of each C, and parts of K with `chunks` chunks in each.
struct ProductGrid {
  int down, across, parts;
  int64_t chunks;
};

// Where the thread's i-th line of the tile lies: in groups of up to 4 neighbours, which are read from shared memory at
// once, the groups as far apart as there are threads to fill the space between.
template <int Lines, int ThreadLines>
INLINE_HD int line_of(int thread, int i) {
  constexpr int group = ThreadLines < 4 ? ThreadLines : 4, distance = Lines / (ThreadLines / group);
  return i / group * distance + thread * group + i % group;
}

// A thread's share in copying an operand's tile to shared memory: `count` elements, `line_step` lines and `depth_step`
// places along K apart, so that neighbouring threads read neighbouring addresses where the operand has such.
template <class Tile, int Lines, class T>
struct OperandPart {
  static constexpr int count = Lines * Tile::depth / Tile::threads, width = Lines + 4;
  const T* at;
  int64_t step, advance;
  int line, line_step, depth, depth_step, lines;
  T values[count];

  __device__ __forceinline__ OperandPart(const T* data, int64_t line_stride, int64_t depth_stride, int64_t lines_left)
      : lines(static_cast<int>(smaller<int64_t>(lines_left, Lines))) {
    const int t = threadIdx.x;
    const bool along_depth = depth_stride == 1;
    line = along_depth ? t / Tile::depth : t % Lines;
    depth = along_depth ? t % Tile::depth : t / Lines;
    line_step = along_depth ? Tile::threads / Tile::depth : 0;
    depth_step = along_depth ? 0 : Tile::threads / Lines;
    at = data + line * line_stride + depth * depth_stride;
    step = line_step * line_stride + depth_step * depth_stride;
    advance = Tile::depth * depth_stride;
  }
  // The next elements, of which `left` along K exist; `padding` beyond.
  __device__ __forceinline__ void read(int64_t left, T padding) {
    const T* from = at;
#pragma unroll
    for (int q = 0; q < count; q++, from += step) {
      const bool exists = line + q * line_step < lines && depth + q * depth_step < left;
      values[q] = exists ? *from : padding;
    }
    at += advance;
  }
  __device__ __forceinline__ void put(T (*tile)[width]) const {
#pragma unroll
    for (int q = 0; q < count; q++) tile[depth + q * depth_step][line + q * line_step] = values[q];
  }
};

template <class T>
__device__ __forceinline__ T with_bias(const Product<T>& p, int64_t column, T total) {
  return p.bias ? add(total, p.bias[column]) : total;
}

// The sums of the thread's part of the tile over one chunk.
template <class Tile, class T>
struct TileSums {
  T sums[Tile::thread_rows][Tile::thread_columns];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = T(0);
  }
  __device__ __forceinline__ void multiply(const T (*a)[Tile::rows + 4], const T (*b)[Tile::columns + 4]) {
    const int down = threadIdx.x / Tile::across, across = threadIdx.x % Tile::across;
#pragma unroll
    for (int k = 0; k < Tile::depth; k++) {
      T x[Tile::thread_rows], y[Tile::thread_columns];
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; i++) x[i] = a[k][line_of<Tile::rows, Tile::thread_rows>(down, i)];
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++)
        y[j] = b[k][line_of<Tile::columns, Tile::thread_columns>(across, j)];
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; i++)
#pragma unroll
        for (int j = 0; j < Tile::thread_columns; j++) sums[i][j] = fma(x[i], y[j], sums[i][j]);
    }
  }
  // Calls f(row, column, sum) for what exists of the thread's part; i and j are constants in the unrolled body.
  template <class F>
  __device__ __forceinline__ void each(int64_t rows_left, int64_t columns_left, F&& f) const {
    const int down = threadIdx.x / Tile::across, across = threadIdx.x % Tile::across;
#pragma unroll
    for (int i = 0; i < Tile::thread_rows; i++) {
      const int row = line_of<Tile::rows, Tile::thread_rows>(down, i);
      if (row >= rows_left) continue;
#pragma unroll
      for (int j = 0; j < Tile::thread_columns; j++) {
        const int column = line_of<Tile::columns, Tile::thread_columns>(across, j);
        if (column < columns_left) f(row, column, sums[i][j]);
      }
    }
  }
};

// Whether the last sums are finished where they are added: with the bias and relu alone. Other activations, and a
// wanted preactivation, are left to finish().
template <class T>
INLINE_HD bool finishes_in_place(const Product<T>& p) {
  return !p.preactivation && (p.activation == Activation::none || p.activation == Activation::relu);
}

// C and preactivation from what this thread has written to its part of C. Not unrolled: seven activations times 64
// elements are more code than the product.
template <class Tile, class T>
__device__ __forceinline__ void finish(const Product<T>& p, T* C, T* preactivation, int64_t rows_left,
                                       int64_t columns_left) {
  const int down = threadIdx.x / Tile::across, across = threadIdx.x % Tile::across;
  with_activation(p.activation, [&](auto act) {
#pragma unroll 1
    for (int e = 0; e < Tile::thread_rows * Tile::thread_columns; e++) {
      const int row = line_of<Tile::rows, Tile::thread_rows>(down, e / Tile::thread_columns);
      const int column = line_of<Tile::columns, Tile::thread_columns>(across, e % Tile::thread_columns);
      if (row >= rows_left || column >= columns_left) continue;
      const int64_t at = row * p.c_row + column;
      if (preactivation) preactivation[at] = C[at];
      C[at] = act.value(C[at]);
    }
  });
}

// `chunk_sums`: null, or (chunks, batch, M, N), where each chunk's sums are left for fold_chunks_kernel.
template <class Tile, class T>
__global__ void __launch_bounds__(Tile::threads, 2) product_kernel(Product<T> p, ProductGrid grid, T* chunk_sums) {
  __shared__ __align__(16) T a_tile[2][Tile::depth][Tile::rows + 4];
  __shared__ __align__(16) T b_tile[2][Tile::depth][Tile::columns + 4];
  int block = blockIdx.x;
  const int64_t n = static_cast<int64_t>(block % grid.across) * Tile::columns;
  block /= grid.across;
  const int64_t m = static_cast<int64_t>(block % grid.down) * Tile::rows;
  block /= grid.down;
  const int64_t part = block % grid.parts, batch = block / grid.parts;
  const int64_t begin = part * grid.chunks * PRODUCT_CHUNK;
  const int64_t end = smaller(p.K, begin + grid.chunks * PRODUCT_CHUNK);

  const T* a_data = p.A.data + (p.a_offset ? p.a_offset[batch] : 0) + m * p.A.row + begin * p.A.column;
  const T* b_data = p.B.data + (p.b_offset ? p.b_offset[batch] : 0) + begin * p.B.row + n * p.B.column;
  OperandPart<Tile, Tile::rows, T> a(a_data, p.A.row, p.A.column, p.M - m);
  OperandPart<Tile, Tile::columns, T> b(b_data, p.B.column, p.B.row, p.N - n);
  // +0 times -0 is -0, which changes no sum.
  auto read = [&](int64_t k) {
    a.read(end - k, T(0));
    b.read(end - k, neg(T(0)));
  };
  auto put = [&](int buffer) {
    a.put(a_tile[buffer]);
    b.put(b_tile[buffer]);
    __syncthreads();
  };

  const int64_t total_row = chunk_sums ? p.N : p.c_row, in_batch = p.M * p.N;
  T* total = chunk_sums ? chunk_sums + (part * grid.chunks * p.batch + batch) * in_batch : p.C + batch * p.c_batch;
  total += m * total_row + n;
  const bool relu = p.activation == Activation::relu && finishes_in_place(p);

  TileSums<Tile, T> tile;
  tile.clear();
  read(begin);
  put(0);
  int buffer = 0;
  bool first = chunk_sums || !p.accumulates;
  for (int64_t k = begin;;) {
    k += Tile::depth;
    const bool last = k >= end;
    if (!last) read(k);
    tile.multiply(a_tile[buffer], b_tile[buffer]);
    if (!last) put(buffer ^= 1);
    if (!last && k % PRODUCT_CHUNK) continue;
    tile.each(p.M - m, p.N - n, [&](int64_t row, int64_t column, T sum) {
      T* at = total + row * total_row + column;
      T y = first ? sum : add(*at, sum);
      if (last && !chunk_sums) {
        y = with_bias(p, n + column, y);
        if (relu) y = Relu::value(y);
      }
      *at = y;
    });
    if (last) break;
    tile.clear();
    if (chunk_sums)
      total += p.batch * in_batch;
    else
      first = false;
  }
  if (chunk_sums || finishes_in_place(p)) return;
  T* preactivation = p.preactivation ? p.preactivation + batch * p.c_batch + m * p.c_row + n : nullptr;
  finish<Tile>(p, total, preactivation, p.M - m, p.N - n);
}

// C from the chunks' sums, left to right.
template <class T>
__global__ void fold_chunks_kernel(Product<T> p, int64_t chunks, const T* chunk_sums) {
  const int64_t in_batch = p.M * p.N, count = p.batch * in_batch, i = global_thread();
  if (i >= count) return;
  const int64_t batch = i / in_batch, row = i % in_batch / p.N, column = i % p.N;
  const int64_t at = batch * p.c_batch + row * p.c_row + column;
  T total = p.accumulates ? add(p.C[at], chunk_sums[i]) : chunk_sums[i];
  for (int64_t c = 1; c < chunks; c++) total = add(total, chunk_sums[c * count + i]);
  total = with_bias(p, column, total);
  if (p.preactivation) p.preactivation[at] = total;
  with_activation(p.activation, [&](auto act) { p.C[at] = act.value(total); });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

struct ProductPlan {
  bool large, split;
  ProductGrid grid;
  int64_t blocks, chunks;
};

// Large tiles where there are enough of them, counting one for each chunk; K is divided where tiles alone leave
// multiprocessors idle and the chunks' sums stay below this many elements.
constexpr int64_t MOST_CHUNK_SUMS = int64_t(1) << 26;

template <class T>
ProductPlan plan_product(const Product<T>& p, Device device) {
  ProductPlan plan{};
  plan.chunks = p.K > 0 ? ceil_div(p.K, PRODUCT_CHUNK) : 1;
  auto tiles = [&](int rows, int columns) { return ceil_div(p.M, rows) * ceil_div(p.N, columns) * p.batch; };
  const int64_t large = tiles(LargeTile::rows, LargeTile::columns);
  plan.large = sizeof(T) == 4 && large * plan.chunks >= device.multiprocessors;
  const int rows = plan.large ? LargeTile::rows : SmallTile::rows;
  const int columns = plan.large ? LargeTile::columns : SmallTile::columns;
  const int64_t count = tiles(rows, columns);
  int64_t parts = 1;
  if (count < device.multiprocessors && plan.chunks * p.batch * p.M * p.N <= MOST_CHUNK_SUMS)
    parts = smaller(plan.chunks, ceil_div(2 * device.multiprocessors, count));
  plan.grid.chunks = ceil_div(plan.chunks, parts);
  plan.grid.down = static_cast<int>(ceil_div(p.M, rows));
  plan.grid.across = static_cast<int>(ceil_div(p.N, columns));
  plan.grid.parts = static_cast<int>(ceil_div(plan.chunks, plan.grid.chunks));
  plan.split = plan.grid.parts > 1;
  plan.blocks = count * plan.grid.parts;
  return plan;
}

template <class T>
bool is_empty(const Product<T>& p) {
  return p.M <= 0 || p.N <= 0 || p.batch <= 0;
}

// Elements of device memory that product() needs beside its arguments.
template <class T>
int64_t product_workspace(const Product<T>& p, Device device) {
  if (is_empty(p)) return 0;
  const ProductPlan plan = plan_product(p, device);
  return plan.split ? plan.chunks * p.batch * p.M * p.N : 0;
}

// As Product says; every pointer, a_offset and b_offset too, is one to device memory.
template <class T>
cudaError_t product(const Product<T>& p, T* workspace, Device device) {
  if (is_empty(p)) return cudaSuccess;
  const ProductPlan plan = plan_product(p, device);
  T* chunk_sums = plan.split ? workspace : nullptr;
  cudaError_t error;
  if constexpr (sizeof(T) == 4) {
    if (plan.large)
      error =
          launch(product_kernel<LargeTile, T>, plan.blocks, LargeTile::threads, 0, device, p, plan.grid, chunk_sums);
    else
      error =
          launch(product_kernel<SmallTile, T>, plan.blocks, SmallTile::threads, 0, device, p, plan.grid, chunk_sums);
  } else {
    error = launch(product_kernel<SmallTile, T>, plan.blocks, SmallTile::threads, 0, device, p, plan.grid, chunk_sums);
  }
  if (error != cudaSuccess || !plan.split) return error;
  constexpr int threads = 256;
  return launch(fold_chunks_kernel<T>, ceil_div(p.batch * p.M * p.N, threads), threads, 0, device, p, plan.chunks,
                static_cast<const T*>(chunk_sums));
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
