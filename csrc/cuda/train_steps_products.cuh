// The products of a training step in one block, in the contract's order: one operand in shared memory, the other one
// on its way through there in slabs, of which one is multiplied while the next one comes.
#pragma once

#include "groups.cuh"
#include "train_steps.h"
#include "../numerics/order.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

using steps::PARTIALS;
using steps::SLAB;
constexpr int STEP_THREADS = steps::THREADS;
static_assert(PRODUCT_CHUNK % 64 == 0);

// What a product needs of shared memory beside its operand there.
struct ProductWork {
  float *slabs, *partial, *total;
  __device__ __forceinline__ float* slab(int turn) const { return slabs + turn % 2 * SLAB; }
};

__device__ __forceinline__ ElementGroup<float> four(const float* shared) {
  return *reinterpret_cast<const ElementGroup<float>*>(shared);
}

// Begins to copy `columns` floats from row(r) on for every r < rows, to rows `stride` apart in shared memory. Up to a
// multiple of four columns the rest is `fill`. `aligned`: a row begins at a multiple of 16 bytes, and so it ends.
template <class Row>
__device__ __forceinline__ void begin_rows(float* to, int stride, int rows, int columns, bool aligned, float fill,
                                           Row row) {
  int lanes = 1;  // that a row has
  while (lanes < WARP && lanes * (aligned ? 4 : 1) < columns) lanes *= 2;
  const int lane = threadIdx.x % lanes;
  for (int r = threadIdx.x / lanes; r < rows; r += STEP_THREADS / lanes) {
    const float* from = row(r);
    float* line = to + r * stride;
    if (aligned) {
      for (int c = 4 * lane; c < columns; c += 4 * lanes) begin_copy(line + c, from + c);
    } else {
      for (int c = lane; c < columns; c += lanes) begin_copy<4>(line + c, from + c);
      for (int c = columns + lane; c < steps::rounded_up(columns, 4); c += lanes) line[c] = fill;
    }
  }
}

// The sums of A B^T, (M, columns): row(m) points to the K elements of A's row m, row n of B begins at B + n * stride in
// shared memory and is -0 from K on to a multiple of four, where A's slabs are +0: their product -0 changes no sum.
// finish(each) is called for every block of rows, and calls each(f) for f(m, n, sum).
//
// A thread has the sums of 4 rows and 4 columns in one chunk of K; up to four chunks are summed side by side.
template <class Row, class Finish>
__device__ __forceinline__ void multiply_rows(Row row, int M, int K, bool aligned, const float* B, int stride,
                                              int columns, const ProductWork& work, Finish finish) {
  const int chunks = (K + PRODUCT_CHUNK - 1) / PRODUCT_CHUNK, tiles = (columns + 3) / 4;
  const int together = smaller(chunks, smaller(4, STEP_THREADS / tiles));
  const int row_tiles = smaller((M + 3) / 4, smaller(16, STEP_THREADS / (tiles * together)));
  int width = PRODUCT_CHUNK;  // of a slab's part of each chunk
  while (4 * row_tiles * (together * width + 4) > SLAB) width /= 2;
  const int slab_stride = together * width + 4, block_columns = 4 * tiles, block_rows = 4 * row_tiles;
  const int row_tile = threadIdx.x % row_tiles, tile = threadIdx.x / row_tiles % tiles,
            chunk = threadIdx.x / row_tiles / tiles;
  const int size = block_rows * block_columns;
  for (int first = 0; first < M; first += block_rows) {
    const int rows = smaller(block_rows, M - first);
    for (int group = 0; group < chunks; group += together) {
      const int slabs = (smaller(PRODUCT_CHUNK, K - group * PRODUCT_CHUNK) + width - 1) / width;
      auto load = [&](int s) {
        for (int c = 0; c < together; c++) {
          const int k = (group + c) * PRODUCT_CHUNK + s * width, left = smaller(width, K - k);
          if (left > 0)
            begin_rows(work.slab(s) + c * width, slab_stride, rows, left, aligned, 0.0f,
                       [&](int r) { return row(first + r) + k; });
        }
      };
      float sums[4][4] = {};
      const int begin = (group + chunk) * PRODUCT_CHUNK;
      load(0);
      for (int s = 0; s < slabs; s++) {
        wait_for_copies();
        __syncthreads();
        if (s + 1 < slabs) load(s + 1);
        const int k = begin + s * width, left = smaller(width, K - k);
        if (chunk >= together) continue;
        const float* a = work.slab(s) + row_tile * slab_stride + chunk * width;
        const float* b = B + tile * stride + k;
#pragma unroll 2
        for (int i = 0; i < left; i += 4) {
          ElementGroup<float> x[4], w[4];
#pragma unroll
          for (int j = 0; j < 4; j++) {
            x[j] = four(a + j * row_tiles * slab_stride + i);
            w[j] = four(b + j * tiles * stride + i);
          }
#pragma unroll
          for (int e = 0; e < 4; e++)
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
              for (int c = 0; c < 4; c++) sums[r][c] = fma(x[r].values[e], w[c].values[e], sums[r][c]);
        }
      }
      if (chunk < together)
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
          for (int c = 0; c < 4; c++)
            work.partial[chunk * size + (row_tile + r * row_tiles) * block_columns + tile + c * tiles] = sums[r][c];
      __syncthreads();
      const int here = smaller(together, chunks - group);
      auto folded = [&](int e) {
        float sum = work.partial[e];
        if (group > 0) sum = add(work.total[e], sum);
        for (int c = 1; c < here; c++) sum = add(sum, work.partial[c * size + e]);
        return sum;
      };
      if (group + together < chunks) {
        for (int e = threadIdx.x; e < size; e += STEP_THREADS) work.total[e] = folded(e);
        continue;
      }
      finish([&](auto&& f) {
        for (int e = threadIdx.x; e < rows * block_columns; e += STEP_THREADS) {
          const int n = e % block_columns;
          if (n < columns) f(first + e / block_columns, n, folded(e));
        }
      });
    }
  }
  __syncthreads();
}

// The sums of dz^T x, (own, K), over M rows: dz(m) points to the `own` elements of dz's row m, row(m) to the K of x's.
// finish(n, k, sums) gets 8 rows from n on and 4 columns from k on, of which some may not exist.
template <class Gradients, class Row, class Finish>
__device__ __forceinline__ void multiply_columns(Gradients dz, bool dz_aligned, int own, Row row, bool aligned, int M,
                                                 int K, const ProductWork& work, Finish finish) {
  const int tiles = (own + 7) / 8, wide = smaller((K + 3) / 4, STEP_THREADS / tiles);
  const int columns = 4 * wide, stride = columns + 8 * tiles;
  int depth = 64;  // rows of a slab
  while (depth * stride > SLAB) depth /= 2;
  const int k_tile = threadIdx.x % wide, tile = threadIdx.x / wide;
  for (int first = 0; first < K; first += columns) {
    auto load = [&](int m) {
      const int rows = smaller(depth, M - m), left = smaller(columns, K - first);
      float* slab = work.slab(m / depth);
      begin_rows(slab, stride, rows, left, aligned, 0.0f, [&](int r) { return row(m + r) + first; });
      begin_rows(slab + columns, stride, rows, own, dz_aligned, 0.0f, [&](int r) { return dz(m + r); });
    };
    float sums[8][4] = {}, total[8][4] = {};
    load(0);
    for (int m = 0; m < M; m += depth) {
      wait_for_copies();
      __syncthreads();
      if (m + depth < M) load(m + depth);
      if (tile >= tiles) continue;
      if (m > 0 && m % PRODUCT_CHUNK == 0) {
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) {
            total[j][c] = m == PRODUCT_CHUNK ? sums[j][c] : add(total[j][c], sums[j][c]);
            sums[j][c] = 0;
          }
      }
      const float* at = work.slab(m / depth);
      const int rows = smaller(depth, M - m);
#pragma unroll 2
      for (int r = 0; r < rows; r++, at += stride) {
        const ElementGroup<float> x = four(at + 4 * k_tile);
        const ElementGroup<float> g[2] = {four(at + columns + 8 * tile), four(at + columns + 8 * tile + 4)};
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) sums[j][c] = fma(g[j / 4].values[j % 4], x.values[c], sums[j][c]);
      }
    }
    if (tile < tiles) {
      if (M > PRODUCT_CHUNK)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) sums[j][c] = add(total[j][c], sums[j][c]);
      finish(8 * tile, first + 4 * k_tile, sums);
    }
    __syncthreads();
  }
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
