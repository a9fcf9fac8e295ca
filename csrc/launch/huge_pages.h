// Large new buffers in huge pages: the first touch of a page costs the kernel of the operating system far more than the
// arithmetic on what lies in it.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pytorch_ext {

// Asks for huge pages under a new CPU tensor that malloc maps anew each time (above 32 MB); returns the tensor.
inline const at::Tensor& in_huge_pages(const at::Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t mapped_anew = uintptr_t(32) << 20, page = uintptr_t(2) << 20;
  if (t.defined() && t.is_cpu() && t.nbytes() > mapped_anew) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    uintptr_t end = (begin + t.nbytes()) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be ignored
  }
#endif
  return t;
}

}  // namespace pytorch_ext
