// Products of bfloat16 and float16 on the tensor cores of sm_90a, sums in float: outside the float32 contract.
//
// A block stays on its multiprocessor and takes one tile of C after the other. Its first warpgroup has the copy engine
// bring tiles of A and B into a ring of stages; the two others multiply, 64 rows of the tile each, and finish what they
// have summed (bias, activation, one rounding) while the next tile's stages fill. The copy engine also carries the
// results out, and cuts off what lies beyond C.
#pragma once

#include "../numerics/activations.h"
#include "tensor_cores_plan.h"
#if defined(__CUDACC__)
#include "tensor_cores_ptx.cuh"
#endif

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Registers of a thread after the division among the warpgroups: together no more than the 168 each begins with.
constexpr int LOADING_REGISTERS = 40, MULTIPLYING_REGISTERS = 232;

struct TensorCoreMaps {
  CUtensorMap a, b, c, preactivation;
};

// What a block needs beside the maps.
template <class S>
struct TensorCoreWork {
  TensorCoreGrid grid;
  int M, N;
  bool a_is_batched, b_is_batched, has_preactivation;
  Activation activation;
  const S* bias;
  uint64_t* mask;
};

// The block's shared memory, by addresses.
template <class Tile>
struct SharedTiles {
  uint32_t base;

  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * Tile::stage_bytes; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Tile::a_bytes; }
  __device__ __forceinline__ uint32_t results(int consumer) const {
    return base + Tile::results_at + consumer * Tile::result_buffers * Tile::result_bytes;
  }
  // The stage holds a tile of each operand; its two consumers have read them.
  __device__ __forceinline__ uint32_t full(int stage) const { return base + Tile::barriers_at + stage * 8; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Tile::stages + stage); }
};

// A place in the ring of stages; the parity changes with every round.
template <int Stages>
struct RingPlace {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == Stages) stage = 0, parity ^= 1;
  }
};

// ---- loading --------------------------------------------------------------------------------------------------------

// The tile of an operand that begins at (line, depth), at `to`: one box, or one for every 64 lines.
template <Major major, int Lines>
__device__ __forceinline__ void load_operand(const CUtensorMap& map, uint32_t to, uint32_t barrier, int line, int depth,
                                             int batch) {
  if constexpr (major == Major::depth) {
    load_box(to, map, barrier, depth, line, batch);
  } else {
#pragma unroll
    for (int i = 0; i < Lines / SWIZZLE_ELEMENTS; i++)
      load_box(to + i * BLOCK_BYTES, map, barrier, line + i * SWIZZLE_ELEMENTS, depth, batch);
  }
}

// One thread's work.
template <class Tile, Major A, Major B, class S>
__device__ __forceinline__ void load_tiles(const TensorCoreMaps& maps, const TensorCoreWork<S>& work,
                                           SharedTiles<Tile> shared) {
  prefetch_map(maps.a);
  prefetch_map(maps.b);
  RingPlace<Tile::stages> place;
  for (int64_t index = blockIdx.x; index < tile_count(work.grid); index += gridDim.x) {
    const TileAt at = tile_at(work.grid, index);
    for (int k = 0; k < work.grid.steps; k++, place.advance()) {
      barrier_wait(shared.empty(place.stage), place.parity ^ 1);
      const uint32_t full = shared.full(place.stage);
      barrier_arrive_and_expect(full, Tile::stage_bytes);
      load_operand<A, Tile::rows>(maps.a, shared.a(place.stage), full, at.down * Tile::rows, k * Tile::depth,
                                  work.a_is_batched ? at.batch : 0);
      load_operand<B, Tile::columns>(maps.b, shared.b(place.stage), full, at.across * Tile::columns, k * Tile::depth,
                                     work.b_is_batched ? at.batch : 0);
    }
  }
}

// ---- multiplying ----------------------------------------------------------------------------------------------------

// The warpgroup's part of a tile. Two stages' products are under way at a time: a stage is free for the next tile when
// those of the stage behind it have begun and its own are done.
template <class Tile, Major A, Major B, class S>
__device__ __forceinline__ void multiply_tile(float (&sums)[Tile::columns / 2], const TensorCoreWork<S>& work,
                                              SharedTiles<Tile> shared, int consumer, RingPlace<Tile::stages>& place) {
  int before = 0;
#pragma unroll
  for (int i = 0; i < Tile::columns / 2; i++) sums[i] = 0.0f;  // without a defined value ptxas serialises the products
  auto release = [&](int stage) {                              // every warp for itself
    if (threadIdx.x % WARP == 0) barrier_arrive(shared.empty(stage));
  };
  for (int k = 0; k < work.grid.steps; k++) {
    barrier_wait(shared.full(place.stage), place.parity);
    // Both layouts have a consumer's 64 rows of A together.
    const uint64_t a = matrix_descriptor(shared.a(place.stage) + consumer * BLOCK_BYTES, A);
    const uint64_t b = matrix_descriptor(shared.b(place.stage), B);
    pin(sums);
    multiply_fence();
#pragma unroll
    for (int step = 0; step < Tile::depth / STEP_DEPTH; step++)
      multiply<S, A, B>(sums, a + step * step_bytes(A) / 16, b + step * step_bytes(B) / 16);
    multiply_commit();
    multiply_wait<1>();
    pin(sums);
    if (k > 0) release(before);
    before = place.stage;
    place.advance();
  }
  multiply_wait<0>();
  pin(sums);
  release(before);
}

// ---- finishing ------------------------------------------------------------------------------------------------------

// A warpgroup's sums are finished 64 columns at a time, which are the thread's first 32; the others then move up. So
// the code is that of 64 columns, and the sums stay in registers.
constexpr int CHUNK_COLUMNS = SWIZZLE_ELEMENTS, CHUNK_SUMS = CHUNK_COLUMNS / 2;

// The first `Count` of the first `Used` sums change places with the others of them.
template <int Used, int Count, int Sums>
__device__ __forceinline__ void rotate(float (&sums)[Sums]) {
  float first[Count];
#pragma unroll
  for (int i = 0; i < Count; i++) first[i] = sums[i];
#pragma unroll
  for (int i = 0; i < Used - Count; i++) sums[i] = sums[i + Count];
#pragma unroll
  for (int i = 0; i < Count; i++) sums[Used - Count + i] = first[i];
}

// The activation of the first 32 sums. Not unrolled: seven activations are more code than the product.
template <int Sums>
__device__ __forceinline__ void activate(float (&sums)[Sums], Activation activation) {
  if (activation == Activation::none) return;
  with_activation(activation, [&](auto act) {
    constexpr int count = 8;
#pragma unroll 1
    for (int i = 0; i < CHUNK_SUMS; i += count) {
#pragma unroll
      for (int j = 0; j < count; j++) sums[j] = act.value(sums[j]);
      rotate<CHUNK_SUMS, count>(sums);
    }
  });
}

template <class S, int Sums>
__device__ __forceinline__ void add_bias(float (&sums)[Sums], const S* bias, int columns_left) {
#pragma unroll
  for (int i = 0; i < CHUNK_SUMS; i += 4) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int column = fragment_column(threadIdx.x % GROUP_THREADS, i + j);
      const float b = column < columns_left ? widen(bias[column]) : 0.0f;
      sums[i + j] = add(sums[i + j], b);
      sums[i + j + 2] = add(sums[i + j + 2], b);
    }
  }
}

// relu's mask of the chunk: a bit for each result, set where it is positive or NaN after rounding.
template <class S, int Sums>
__device__ __forceinline__ void write_mask(const float (&sums)[Sums], uint64_t* mask, int64_t words, int rows_left) {
  const int thread = threadIdx.x % GROUP_THREADS;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    uint64_t bits = 0;
#pragma unroll
    for (int i = 2 * r; i < CHUNK_SUMS; i += 4) {
      const uint32_t pair = narrow_pair<S>(sums[i], sums[i + 1]);  // of relu: none is negative
      const uint64_t both = (pair & 0x7fffu ? 1u : 0u) | (pair & 0x7fff0000u ? 2u : 0u);
      bits |= both << fragment_column(thread, i);
    }
    bits |= __shfl_xor_sync(ALL_LANES, bits, 1);
    bits |= __shfl_xor_sync(ALL_LANES, bits, 2);
    const int row = fragment_row(thread, 2 * r);
    if (thread % 4 == 0 && row < rows_left) mask[row * words] = bits;
  }
}

// Carries results to global memory. `buffers`: two of 64x64 results, used in turn.
struct ResultStore {
  uint32_t buffers;
  int barrier;  // the warpgroup's
  int next = 0;

  // The first 32 sums, rounded, to the 64x64 elements at (row, column) of the map's tensor.
  template <class S, class Tile, int Sums>
  __device__ __forceinline__ void store(const float (&sums)[Sums], const CUtensorMap& map, int row, int column,
                                        int batch) {
    const int thread = threadIdx.x % GROUP_THREADS;
    const uint32_t buffer = buffers + next * Tile::result_bytes;
    next ^= 1;
    if (thread == 0) wait_for_stores<Tile::result_buffers - 1>();
    group_barrier(barrier);
#pragma unroll
    for (int i = 0; i < CHUNK_SUMS; i += 2) {
      const int at = fragment_row(thread, i) * SWIZZLE_BYTES + fragment_column(thread, i) * 2;
      store_shared(buffer + swizzled(at), narrow_pair<S>(sums[i], sums[i + 1]));
    }
    copy_engine_fence();
    group_barrier(barrier);
    if (thread == 0) store_box(map, buffer, column, row, batch);
  }
};

template <class Tile, class S>
__device__ __forceinline__ void finish_tile(float (&sums)[Tile::columns / 2], const TensorCoreMaps& maps,
                                            const TensorCoreWork<S>& work, int row, int column, int batch,
                                            ResultStore& results) {
  if (row >= work.M) return;
#pragma unroll 1
  for (int end = column + Tile::columns; column < end && column < work.N; column += CHUNK_COLUMNS) {
    if (work.bias) add_bias(sums, work.bias + column, work.N - column);
    if (work.has_preactivation) results.template store<S, Tile>(sums, maps.preactivation, row, column, batch);
    activate(sums, work.activation);
    results.template store<S, Tile>(sums, maps.c, row, column, batch);
    if (work.mask) {
      const int64_t words = mask_words(work.N);
      write_mask<S>(sums, work.mask + row * words + column / CHUNK_COLUMNS, words, work.M - row);
    }
    rotate<Tile::columns / 2, CHUNK_SUMS>(sums);
  }
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

// Empty where it is compiled for another architecture; the launcher does not launch it there.
template <class S, class Tile, Major A, Major B>
__global__ void __launch_bounds__(TENSOR_CORE_THREADS, 1)
    tensor_core_product_kernel(const __grid_constant__ TensorCoreMaps maps, TensorCoreWork<S> work) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t begin = shared_address(dynamic_shared<unsigned char>());
  const SharedTiles<Tile> shared{(begin + ATOM_BYTES - 1) / ATOM_BYTES * ATOM_BYTES};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::stages; stage++) {
      barrier_init(shared.full(stage), 1);
      barrier_init(shared.empty(stage), CONSUMERS * GROUP_THREADS / WARP);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int group = threadIdx.x / GROUP_THREADS;
  if (group == 0) {
    give_registers_back<LOADING_REGISTERS>();
    if (threadIdx.x == 0) load_tiles<Tile, A, B>(maps, work, shared);
  } else {
    take_registers<MULTIPLYING_REGISTERS>();
    const int consumer = group - 1;
    RingPlace<Tile::stages> place;
    ResultStore results{shared.results(consumer), group};
    for (int64_t index = blockIdx.x; index < tile_count(work.grid); index += gridDim.x) {
      const TileAt at = tile_at(work.grid, index);
      float sums[Tile::columns / 2];
      multiply_tile<Tile, A, B>(sums, work, shared, consumer, place);
      finish_tile<Tile>(sums, maps, work, at.down * Tile::rows + consumer * GROUP_ROWS, at.across * Tile::columns,
                        at.batch, results);
    }
    if (threadIdx.x % GROUP_THREADS == 0) wait_for_stores<0>();
  }
#endif
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
