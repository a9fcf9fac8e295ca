// The first and the last kernel of a graph.
#pragma once

#include "graph_arguments.h"
#include "groups.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int GRAPH_THREADS = 256;
constexpr int INPUTS_PER_BLOCK = GRAPH_THREADS * ElementGroup<uint32_t>::size;

__global__ void __launch_bounds__(GRAPH_THREADS) begin_graph_kernel(GraphArguments p) {
  const int64_t first = global_thread() * ElementGroup<uint32_t>::size;
#pragma unroll
  for (const GraphInput& x : p.inputs) {
    const bool aligned = are_aligned(x.from, x.to);
    const int64_t left = x.count - first;
    if (left > 0) store_group(x.to + first, load_group(x.from + first, left, aligned), left, aligned);
  }
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < p.count; i += GRAPH_THREADS) p.at[i] = p.numbers[i];
}

// A result of `count` times 4 bytes to where the numbers of this launch say.
__global__ void __launch_bounds__(WARP) end_graph_kernel(const uint32_t* result, int count, uint32_t* const* to) {
  if (static_cast<int>(threadIdx.x) < count) (*to)[threadIdx.x] = result[threadIdx.x];
}

// ---- launchers ------------------------------------------------------------------------------------------------------

inline int64_t begin_graph_blocks(const GraphArguments& p) {
  int64_t blocks = 1;
  for (const GraphInput& x : p.inputs) blocks = larger(blocks, ceil_div(x.count, INPUTS_PER_BLOCK));
  return blocks;
}

inline cudaError_t begin_graph(const GraphArguments& p, Device device) {
  return launch(begin_graph_kernel, begin_graph_blocks(p), GRAPH_THREADS, 0, device, p);
}

inline cudaError_t end_graph(const uint32_t* result, int count, uint32_t* const* to, Device device) {
  return launch(end_graph_kernel, 1, WARP, 0, device, result, count, to);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
