// Groups of neighbouring elements, which memory moves at once.
#pragma once

#include "launch.cuh"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Elements that one instruction moves.
template <class S, int count>
struct alignas(sizeof(S) * count) Neighbours {
  S values[count];
};

// What a thread works on: 16 bytes, but four elements at least, as many as one counter gives random words.
template <class S>
struct alignas(16) ElementGroup {
  static constexpr int size = sizeof(S) < 4 ? 16 / sizeof(S) : 4;
  S values[size];
};

// The group at x, of which `left` elements exist. `aligned`: x is a multiple of 16 bytes.
template <class S>
__device__ __forceinline__ ElementGroup<S> load_group(const S* x, int64_t left, bool aligned) {
  constexpr int size = ElementGroup<S>::size;
  if (aligned && left >= size) return *reinterpret_cast<const ElementGroup<S>*>(x);
  ElementGroup<S> group = {};
#pragma unroll
  for (int j = 0; j < size; j++)
    if (j < left) group.values[j] = x[j];
  return group;
}
// Writes 16 bytes of global memory at once. An assignment of as many the compiler sometimes makes four of.
template <class Group>
__device__ __forceinline__ void store_16_bytes(void* to, const Group& group) {
  static_assert(sizeof(Group) == 16);
#if defined(__CUDA_ARCH__)
  unsigned words[4];
  memcpy(words, &group, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3]));
#else
  memcpy(to, &group, 16);
#endif
}

// To the group at y, likewise, in global memory.
template <class S>
__device__ __forceinline__ void store_group(S* y, const ElementGroup<S>& group, int64_t left, bool aligned) {
  constexpr int size = ElementGroup<S>::size;
  if (aligned && left >= size) {
    if constexpr (sizeof group == 16)
      store_16_bytes(y, group);
    else
      *reinterpret_cast<ElementGroup<S>*>(y) = group;
    return;
  }
#pragma unroll
  for (int j = 0; j < size; j++)
    if (j < left) y[j] = group.values[j];
}

// Whether all arrays begin at a multiple of 16 bytes; a null pointer does.
template <class... X>
INLINE_HD bool are_aligned(const X*... x) {
  return ((uintptr_t(0) | ... | reinterpret_cast<uintptr_t>(x)) % 16) == 0;
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
