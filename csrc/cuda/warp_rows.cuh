// Rows on the threads of a warp each, and what rows do with memory.
#pragma once

#include "warp_sums.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int ROWS_PER_BLOCK = 4;

// What all rows do with memory, where columns lie `inner` apart; 1 where they are Contiguous.
template <int Together, bool Contiguous>
struct RowMemory {
  static_assert(Contiguous || Together == 1);
  static constexpr int together = Together;
  static constexpr bool of_cluster = false;
  int64_t inner;

  __device__ __forceinline__ int64_t place(int64_t c) const { return Contiguous ? c : c * inner; }

  template <class S>
  __device__ __forceinline__ Neighbours<S, Together> load(const S* x, int64_t c) const {
    if constexpr (Together == 1)
      return {{x[place(c)]}};
    else
      return *reinterpret_cast<const Neighbours<S, Together>*>(x + c);
  }
  template <bool Shared = false, class S, class T>
  __device__ __forceinline__ void put(S* y, int64_t c, const Terms<T, Together>& terms) const {
    Neighbours<S, Together> narrowed;
#pragma unroll
    for (int k = 0; k < Together; k++) narrowed.values[k] = narrow<S>(terms.values[k]);
    if constexpr (Together == 1)
      y[place(c)] = narrowed.values[0];
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
template <int Held, int Together, bool Contiguous = (Together > 1)>
struct WarpRow : RowMemory<Together, Contiguous> {
  static constexpr int held = Held, block_threads = ROWS_PER_BLOCK * WARP, sweep = WARP * Together;
  static constexpr bool of_block = false;
  static constexpr bool staged = false;
  static constexpr int blocks = !Held ? 1 : Together == 4 ? 4 : 3;  // on a multiprocessor: with more ptxas spills
  int columns;

  __device__ __forceinline__ WarpRow(int64_t columns, int64_t inner)
      : RowMemory<Together, Contiguous>{inner}, columns(static_cast<int>(columns)) {}
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

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
