// Rows on the threads of a warp or a block: their columns, largest elements and sums.
#pragma once

#include "warp_sums.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// ---- a row's threads ------------------------------------------------------------------------------------------------
//
//   largest(f, x...), sum(f, x...)
//       over the columns: f(j, c, x[c]...) is called for column c by the thread that has it; the results of largest and
//       sum are known to all threads
//   store(y, f, x...), sum_into(y, f, x...)
//       the same, and y[c] becomes the result; sum_into where y is not null
//   held
//       how many columns a thread has at most, where it may keep them in registers: column c is then its j-th in every
//       call, and j a constant; else 0
//   staged
//       whether shared memory has room for arrays of a row, stage<T>(0), stage<T>(1)...; threads find their own
//       columns there without a barrier
//   together
//       how many columns memory moves at once: more than one where rows are contiguous and aligned to so many

// A block whose row leaves room for less than three on a multiprocessor has more threads, but in float64, whose
// functions would not fit the registers.
constexpr int ROWS_PER_BLOCK = 4, BLOCK_ROW_THREADS = 256, MOST_BLOCK_ROW_THREADS = 512;
// Columns one by one have an address each, and two together are doubles: fewer of them fit the registers.
constexpr int held_columns(int together) { return 8 * together; }

template <class S>
constexpr int columns_together = sizeof(S) == 8 ? 2 : 4;

// What all rows do with memory, where columns lie `inner` apart.
template <int Together>
struct RowMemory {
  static constexpr int together = Together;
  int64_t inner;

  template <class S>
  __device__ __forceinline__ Neighbours<S, Together> load(const S* x, int64_t c) const {
    if constexpr (Together == 1)
      return {{x[c * inner]}};
    else
      return *reinterpret_cast<const Neighbours<S, Together>*>(x + c);
  }
  template <bool Shared = false, class S, class T>
  __device__ __forceinline__ void put(S* y, int64_t c, const Terms<T, Together>& terms) const {
    Neighbours<S, Together> narrowed;
#pragma unroll
    for (int k = 0; k < Together; k++) narrowed.values[k] = narrow<S>(terms.values[k]);
    if constexpr (Together == 1)
      y[c * inner] = narrowed.values[0];
    else if constexpr (sizeof narrowed == 16 && !Shared)
      store_16_bytes(y + c, narrowed);
    else
      *reinterpret_cast<Neighbours<S, Together>*>(y + c) = narrowed;
  }
  // The results of f for the columns from c on, the thread's j-th and those behind it.
  template <class T, class Column, class F, class... X>
  __device__ __forceinline__ Terms<T, Together> terms(int j, Column c, F& f, const X*... x) const {
    Terms<T, Together> terms;
    auto call = [&](const auto&... loaded) {
#pragma unroll
      for (int k = 0; k < Together; k++) terms.values[k] = f(j + k, c + k, widen(loaded.values[k])...);
    };
    call(load(x, c)...);
    return terms;
  }
};

// A warp for a row of at most 4096 columns, or of as many as it holds.
template <int Held, int Together>
struct WarpRow : RowMemory<Together> {
  static constexpr int held = Held, block_threads = ROWS_PER_BLOCK * WARP, sweep = WARP * Together;
  static constexpr bool of_block = false;
  static constexpr bool staged = false;
  static constexpr int blocks = !Held ? 1 : Together == 4 ? 4 : 3;  // on a multiprocessor: with more ptxas spills
  int columns;

  __device__ __forceinline__ WarpRow(int64_t columns, int64_t inner)
      : RowMemory<Together>{inner}, columns(static_cast<int>(columns)) {}
  // Calls f(j, c) for the groups of the thread.
  template <class F>
  __device__ __forceinline__ void each_group(F&& f) const {
    const int first = threadIdx.x % WARP * Together;
    if constexpr (Held > 0) {
#pragma unroll
      for (int j = 0; j < Held / Together; j++)
        if (first + j * sweep < columns) f(j * Together, first + j * sweep);
    } else {
#pragma unroll 4
      for (int c = first; c < columns; c += sweep) f(0, c);
    }
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T largest(F&& f, const X*... x) const {
    T most = -static_cast<T>(POSITIVE_INFINITY);
    each_group([&](int j, int c) { most = largest_of(this->template terms<T>(j, c, f, x...), most); });
    return largest_of_warp(most);
  }
  template <class S, class F, class... X>
  __device__ __forceinline__ void store(S* y, F&& f, const X*... x) const {
    each_group([&](int j, int c) { this->put(y, c, this->template terms<compute_t<S>>(j, c, f, x...)); });
  }
  template <class T, class S, class F, class... X>
  __device__ __forceinline__ T sum_into(S* y, F&& f, const X*... x) const {
    auto stored = [&](int j, int c) {
      const auto terms = this->template terms<T>(j, c, f, x...);
      if (y) this->put(y, c, terms);
      return terms;
    };
    if constexpr (Held > 0 && Together == 1) {
      T low = T(0), high = T(0);
      each_group([&](int j, int c) {
        T& lane = j % 2 ? high : low;
        lane = add(lane, stored(j, c).values[0]);
      });
      return fold_lanes(low, high);
    } else if constexpr (Held > 0) {
      LaneSums<T, Together> lanes;
      const int first = threadIdx.x % WARP * Together;
#pragma unroll
      for (int j = 0; j < Held / Together; j++) {
        if (j * sweep >= columns) continue;  // all threads alike
        Terms<T, Together> own = {};
        if (first + j * sweep < columns) own = stored(j * Together, first + j * sweep);
        lanes.add_group(own);
      }
      return lanes.fold();
    } else {
      return sum_row_segment<T, Together>(columns, [&](int c) { return stored(0, c); });
    }
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T sum(F&& f, const X*... x) const {
    return sum_into<T>(static_cast<T*>(nullptr), f, x...);
  }
};

// A block for a row of any length, a warp for each of its segments. Dynamic shared memory, of block_row_bytes(), holds
// the sums of segments, as many as are a segment themselves, and the sums of those groups; then what is staged.
constexpr int64_t SHARED_BYTES_OF_SEVERAL = 72 << 10;  // three blocks on a multiprocessor of sm_90, two of sm_80

INLINE_HD int64_t segments_of(int64_t elements) { return elements > SUM_SEGMENT ? ceil_div(elements, SUM_SEGMENT) : 1; }
// How many sums of segments that are, rounded up so that what follows begins at a multiple of 16 bytes.
INLINE_HD int64_t block_row_sums(int64_t columns) {
  const int64_t segments = segments_of(columns);
  return ceil_div(segments_of(segments) + smaller<int64_t>(segments, SUM_SEGMENT), 4) * 4;
}
template <class T>
int64_t block_row_bytes(int64_t columns, int staged_arrays) {
  return (block_row_sums(columns) + staged_arrays * columns) * static_cast<int64_t>(sizeof(T));
}

template <int Together, bool Staged>
struct BlockRow : RowMemory<Together> {
  static constexpr int held = 0, block_threads = Together == 2 ? BLOCK_ROW_THREADS : MOST_BLOCK_ROW_THREADS;
  static constexpr bool of_block = true;
  static constexpr bool staged = Staged;
  static constexpr int blocks = 1;
  int64_t columns;

  __device__ __forceinline__ BlockRow(int64_t columns, int64_t inner) : RowMemory<Together>{inner}, columns(columns) {}
  template <class F>
  __device__ __forceinline__ void each_group(F&& f) const {
#pragma unroll 4
    for (int64_t c = threadIdx.x * Together; c < columns; c += blockDim.x * Together) f(c);
  }
  static __device__ __forceinline__ int warps() { return blockDim.x / WARP; }
  // What is staged becomes f(j, c, x[c]...).
  template <class T, class F, class... X>
  __device__ __forceinline__ void stage_terms(T* stage, F&& f, const X*... x) const {
    each_group([&](int64_t c) { this->template put<true>(stage, c, this->template terms<T>(0, c, f, x...)); });
  }
  // Begins to stage an array: a thread has its own columns after wait_for_copies().
  template <class T, class S>
  __device__ __forceinline__ void begin_staging(T* stage, const S* x) const {
    if constexpr (std::is_same_v<T, S> && sizeof(S) * Together == 16)
      each_group([&](int64_t c) { begin_copy(stage + c, x + c); });
    else
      stage_terms(stage, [](int, int64_t, T v) { return v; }, x);
  }
  template <class T>
  __device__ __forceinline__ T* stage(int array) const {
    return dynamic_shared<T>() + block_row_sums(columns) + array * columns;
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T largest(F&& f, const X*... x) const {
    __shared__ T of_warp[MOST_BLOCK_ROW_THREADS / WARP];
    T most = -static_cast<T>(POSITIVE_INFINITY);
    each_group([&](int64_t c) { most = largest_of(this->template terms<T>(0, c, f, x...), most); });
    most = largest_of_warp(most);
    __syncthreads();  // of_warp was read in an earlier call
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = most;
    __syncthreads();
    most = of_warp[0];
    for (int w = 1; w < warps(); w++) most = max(most, of_warp[w]);
    return most;
  }
  template <class S, class F, class... X>
  __device__ __forceinline__ void store(S* y, F&& f, const X*... x) const {
    each_group([&](int64_t c) { this->put(y, c, this->template terms<compute_t<S>>(0, c, f, x...)); });
  }
  template <class T, class S, class F, class... X>
  __device__ __forceinline__ T sum_into(S* y, F&& f, const X*... x) const {
    const int64_t segments = ceil_div(columns, SUM_SEGMENT), groups = segments_of(segments);
    T *of_groups = dynamic_shared<T>(), *of_segments = of_groups + groups;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * SUM_SEGMENT, count = smaller<int64_t>(segments - first, SUM_SEGMENT);
      __syncthreads();  // the sums of an earlier call or group were read
      for (int64_t s = threadIdx.x / WARP; s < count; s += warps()) {
        const int64_t begin = (first + s) * SUM_SEGMENT;
        const T sum = sum_row_segment<T, Together>(smaller<int64_t>(columns - begin, SUM_SEGMENT), [&](int i) {
          const auto terms = this->template terms<T>(0, begin + i, f, x...);
          if (y) this->put(y, begin + i, terms);
          return terms;
        });
        if (threadIdx.x % WARP == 0) of_segments[s] = sum;
      }
      __syncthreads();
      if (threadIdx.x >= WARP) continue;
      const T sum = sum_segment<T>(count, [&](int s) { return of_segments[s]; });
      if (threadIdx.x == 0) of_groups[g] = sum;
    }
    __syncthreads();
    if (threadIdx.x < WARP) sum_array_in_place(groups, of_groups);
    __syncthreads();
    return *of_groups;
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T sum(F&& f, const X*... x) const {
    return sum_into<T>(static_cast<T*>(nullptr), f, x...);
  }
};

// The row of this thread, and whether it is the one that writes what a row has one of.
template <class Row>
__device__ __forceinline__ int64_t own_row() {
  return Row::of_block ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP;
}
template <class Row>
__device__ __forceinline__ bool is_first_of_row() {
  return threadIdx.x % (Row::of_block ? blockDim.x : WARP) == 0;
}

struct RowGrid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const RowGrid& grid, Device device, Arguments... arguments) {
  return launch(kernel, grid.blocks, grid.threads, grid.shared_bytes, device, arguments...);
}

// Whether rows of that length, `row_stride` elements of S apart at their beginnings, move in groups.
template <class S, class... X>
bool moves_together(int64_t columns, int64_t inner, int64_t row_stride, const X*... arrays) {
  constexpr int together = columns_together<S>;
  return inner == 1 && columns % together == 0 && row_stride % together == 0 && are_aligned(arrays...);
}

// Calls launch_on(grid, row) with the kind of row, as a null pointer to it, that rows of this length want.
// `staged_arrays`: how many arrays of a row a kernel stages where there is room.
template <class S, class LaunchOn>
cudaError_t with_rows(int64_t rows, int64_t columns, bool together, int staged_arrays, Device device,
                      LaunchOn&& launch_on) {
  const RowGrid warps{ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0};
  auto blocks = [&](int arrays) {
    const int64_t bytes = block_row_bytes<compute_t<S>>(columns, arrays);
    const bool alone = bytes > SHARED_BYTES_OF_SEVERAL && sizeof(S) < 8;
    return RowGrid{rows, alone ? MOST_BLOCK_ROW_THREADS : BLOCK_ROW_THREADS, bytes};
  };
  // Kernels have a little shared memory of their own.
  auto has_room = [&](const RowGrid& grid) { return grid.shared_bytes <= device.shared_bytes - (1 << 10); };
  if (!has_room(blocks(0))) return cudaErrorInvalidConfiguration;  // above 1e11 columns
  if (together) {
    constexpr int n = columns_together<S>, held = held_columns(n);
    if (columns <= held * WARP) return launch_on(warps, static_cast<WarpRow<held, n>*>(nullptr));
    if (has_room(blocks(staged_arrays)))
      return launch_on(blocks(staged_arrays), static_cast<BlockRow<n, true>*>(nullptr));
    return launch_on(blocks(0), static_cast<BlockRow<n, false>*>(nullptr));
  }
  constexpr int held = held_columns(1);
  if (columns <= held * WARP) return launch_on(warps, static_cast<WarpRow<held, 1>*>(nullptr));
  if (columns <= SUM_SEGMENT) return launch_on(warps, static_cast<WarpRow<0, 1>*>(nullptr));
  return launch_on(blocks(0), static_cast<BlockRow<1, false>*>(nullptr));
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
