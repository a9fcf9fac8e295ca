// Working memory for a kernel: aligned, uninitialised, freed with its scope. Small sizes stay on the stack.
// The standard containers are not used in kernels: their code is shared between instruction sets at link time.
#pragma once

#include <cstdlib>

#include "../numerics/platform.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

template <class T, int64_t STACK_BYTES = 1024>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(reinterpret_cast<T*>(stack_)) {
    int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > STACK_BYTES)
      data_ = static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
    if (!data_) std::abort();
  }
  ~Scratch() {
    if (data_ != reinterpret_cast<T*>(stack_)) std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  T* data_;
  alignas(64) unsigned char stack_[STACK_BYTES];
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
