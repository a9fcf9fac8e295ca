// Large new buffers in huge pages: the first touch of a page costs the kernel of the operating system far more than the
// arithmetic on what lies in it.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pytorch_ext {

// Asks for huge pages under a new CPU tensor of two of them and more; returns the tensor. Above 32 MB malloc maps its
// memory anew each time, below that from time to time.
inline const at::Tensor& in_huge_pages(const at::Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t large = uintptr_t(4) << 20, page = uintptr_t(2) << 20;
  if (t.defined() && t.is_cpu() && t.nbytes() >= large) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    uintptr_t end = (begin + t.nbytes()) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be ignored
  }
#endif
  return t;
}

}  // namespace pytorch_ext
