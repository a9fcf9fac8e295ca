// Which instruction set the CPU kernels run on: every kernel is compiled once per set and chosen at run time.
#pragma once

#include <cstdint>

namespace pytorch_ext::cpu {

enum class Capability : int { baseline, avx2, avx512 };

// The best set that this processor and this build have.
Capability best_capability();
// The set in use: PYTORCH_EXT_CPU_CAPABILITY where it names one this processor has, else the best.
Capability capability();
// False, changing nothing, where this processor or this build lacks it.
bool set_capability(Capability wanted);

// PYTORCH_EXT_EACH_ISA(X) expands X(namespace) for every set in this build.
#if defined(__x86_64__)
#define PYTORCH_EXT_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#else
#define PYTORCH_EXT_EACH_ISA(X) X(baseline)
#endif

// CPU_KERNEL(name<float>): the function of that name for the set in use.
#if defined(__x86_64__)
#define CPU_KERNEL(...)                                                                                 \
  (::pytorch_ext::cpu::choose(&::pytorch_ext::baseline::__VA_ARGS__, &::pytorch_ext::avx2::__VA_ARGS__, \
                              &::pytorch_ext::avx512::__VA_ARGS__))
template <class Function>
Function choose(Function baseline, Function avx2, Function avx512) {
  Capability c = capability();
  return c == Capability::avx512 ? avx512 : c == Capability::avx2 ? avx2 : baseline;
}
#else
#define CPU_KERNEL(...) (&::pytorch_ext::baseline::__VA_ARGS__)
#endif

}  // namespace pytorch_ext::cpu
