#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pytorch_ext::cpu {
namespace {

#if defined(__x86_64__)
bool supports_f16c() {  // not among the names that every clang knows
  unsigned eax, ebx, ecx = 0, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}
#endif

Capability detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Capability::avx512 : avx2 ? Capability::avx2 : Capability::baseline;
#else
  return Capability::baseline;
#endif
}

Capability initial() {
  const char* wanted = std::getenv("PYTORCH_EXT_CPU_CAPABILITY");
  const char* names[] = {"baseline", "avx2", "avx512"};
  if (wanted)
    for (int i = 0; i <= static_cast<int>(best_capability()); i++)
      if (!std::strcmp(wanted, names[i])) return static_cast<Capability>(i);
  return best_capability();
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> value{initial()};
  return value;
}

}  // namespace

Capability best_capability() {
  static const Capability best = detect();
  return best;
}

Capability capability() { return current().load(std::memory_order_relaxed); }

bool set_capability(Capability wanted) {
  if (wanted < Capability::baseline || wanted > best_capability()) return false;
  current().store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace pytorch_ext::cpu
