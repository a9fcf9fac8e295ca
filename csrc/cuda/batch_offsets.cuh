// Where the matrices of a batch begin, computed on the device: no copy from the host.
#pragma once

#include "../cpu/product.h"
#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// A template, so that several translation units may have it.
template <class Index>
__global__ void batch_offsets_kernel(BatchOffsets p) {
  const Index b = global_thread();
  if (b >= p.count) return;
  Index offset = 0, index = b;
  for (int d = p.dims - 1; d >= 0; d--) {
    offset += index % p.size[d] * p.stride[d];
    index /= p.size[d];
  }
  p.offsets[b] = offset;
}

// Product::a_offset or b_offset, computed on the device.
inline cudaError_t batch_offsets(const BatchOffsets& p, Device device) {
  constexpr int threads = 256;
  return launch(batch_offsets_kernel<int64_t>, ceil_div(p.count, threads), threads, 0, device, p);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
