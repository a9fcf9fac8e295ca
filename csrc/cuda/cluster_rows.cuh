// Rows on the threads of a cluster each (cluster.cuh): its blocks share a row's columns in their shared memory.
#pragma once

#include "block_rows.cuh"
#include "cluster.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Each block has whole segments of the row's sums, as many as the others or fewer, and a warp sums each of them; then
// every warp of the cluster reads the sums of all segments and adds them in their order. So the blocks share a row
// without a change to a bit.
//
// Dynamic shared memory, of cluster_row_bytes(), holds twice what the blocks tell each other: the largest elements of
// warps, or the sums of segments. The two take turns: who writes one again has waited for all others since they have
// read it, in the call between. Then comes what is staged.
INLINE_HD int64_t segments_of_block(int64_t columns, int cluster) { return ceil_div(segments_of(columns), cluster); }
template <class T>
int64_t cluster_row_bytes(int64_t columns, int cluster, int staged_arrays) {
  const int64_t segments = segments_of_block(columns, cluster);
  return (2 * MOST_BLOCK_ROW_WARPS + staged_arrays * segments * SUM_SEGMENT) * static_cast<int64_t>(sizeof(T));
}

template <int Together>
struct ClusterRow : BlockColumns<Together, true> {
  static constexpr bool of_cluster = true, staged = true;
  int64_t columns;
  mutable bool odd = false;  // whose turn it is

  __device__ __forceinline__ ClusterRow(int64_t columns, int64_t)
      : BlockColumns<Together, true>(1, smaller(own_first(columns, 0), columns),
                                     smaller(own_first(columns, 1), columns)),
        columns(columns) {}
  ClusterRow(const ClusterRow&) = delete;
  __device__ __forceinline__ ~ClusterRow() { cluster_barrier(); }  // until the others have read what this block has

  // Where column c of a staged array would be, were those before the block's own there too.
  template <class T>
  __device__ __forceinline__ T* stage(int array) const {
    const int64_t most = segments_of_block(columns, cluster_size()) * SUM_SEGMENT;
    return dynamic_shared<T>() + 2 * MOST_BLOCK_ROW_WARPS + array * most - this->first;
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T largest(F&& f, const X*... x) const {
    T *of_warp = told<T>(), most = this->template largest_of_own<T>(f, x...);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = most;
    cluster_barrier();
    for (int i = threadIdx.x % WARP; i < cluster_size() * this->warps(); i += WARP)
      most = max(*in_peer(of_warp + i % this->warps(), i / this->warps()), most);
    return largest_of_warp(most);
  }
  template <class T, class F, class... X>
  __device__ __forceinline__ T sum(F&& f, const X*... x) const {
    T* of_segments = told<T>();
    __syncthreads();  // what other threads have staged
    const int in_block = static_cast<int>(segments_of_block(columns, cluster_size()));
    for (int s = threadIdx.x / WARP; this->first + int64_t(s) * SUM_SEGMENT < this->end; s += this->warps()) {
      const T sum =
          this->template sum_segment_into<T>(static_cast<T*>(nullptr), this->first + s * SUM_SEGMENT, f, x...);
      if (threadIdx.x % WARP == 0) of_segments[s] = sum;
    }
    cluster_barrier();
    return sum_segment<T>(segments_of(columns),
                          [&](int s) { return *in_peer(of_segments + s % in_block, s / in_block); });
  }

 private:
  static __device__ __forceinline__ int64_t own_first(int64_t columns, int after) {
    return (cluster_rank() + after) * segments_of_block(columns, cluster_size()) * SUM_SEGMENT;
  }
  // What this block tells the others in this call.
  template <class T>
  __device__ __forceinline__ T* told() const {
    odd = !odd;
    return dynamic_shared<T>() + (odd ? MOST_BLOCK_ROW_WARPS : 0);
  }
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
