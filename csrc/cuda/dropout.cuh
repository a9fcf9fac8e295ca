// dropout: y = x * mask, and its gradient, which is the same with g for x.
#pragma once

#include "../cpu/dropout.h"
#include "../numerics/philox.h"
#include "elementwise.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class S>
struct DropoutMask {
  using T = compute_t<S>;
  Dropout<S> p;

  struct Group {
    uint32_t words[ElementGroup<S>::size];
    uint32_t threshold;
    T scale;
    __device__ __forceinline__ T operator()(int j, T x) const { return mul(x, words[j] >= threshold ? scale : T(0)); }
  };
  __device__ __forceinline__ Group group(int64_t first) const {
    Group g{{}, p.threshold, p.scale};
    const uint64_t key = p.current_key();
#pragma unroll
    for (int j = 0; j < ElementGroup<S>::size; j += 4) {
      const uint64_t counter = static_cast<uint64_t>(first + j) / 4;
      uint64_t c[4] = {counter, counter >> 32, 0, 0};
      philox(c, key, MultiplyWords());
#pragma unroll
      for (int w = 0; w < 4; w++) g.words[j + w] = static_cast<uint32_t>(c[w]);
    }
    return g;
  }
};

template <class S>
cudaError_t dropout(const Dropout<S>& p, Device device) {
  return map(DropoutMask<S>{p}, p.n, p.y, device, p.x);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
