// Single-precision operations per second of one core: independent chains of fused multiply-adds, in registers.
#include <chrono>

template <int LANES>
struct Chains {
  typedef float Vector __attribute__((vector_size(4 * LANES)));
  static constexpr int chains = 12, rounds = 100000;

  __attribute__((always_inline)) static inline double run() {
    Vector x[chains], a = Vector{} + 0.999f, b = Vector{} + 0.001f;
    for (int i = 0; i < chains; i++) x[i] = b * float(i);
    const auto start = std::chrono::steady_clock::now();
    for (int r = 0; r < rounds; r++)
#pragma GCC unroll 12
      for (int i = 0; i < chains; i++) x[i] = x[i] * a + b;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (int i = 1; i < chains; i++) x[0] += x[i];
    asm volatile("" ::"m"(x[0]));
    return 2.0 * LANES * chains * rounds / seconds.count();
  }
};

#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512"))) static double with_avx512() { return Chains<16>::run(); }
__attribute__((target("avx2,fma"))) static double with_avx2() { return Chains<8>::run(); }
#endif

static double once() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return with_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return with_avx2();
#endif
  return Chains<4>::run();
}

extern "C" double operations_per_second() {
  double best = 0;
  for (int i = 0; i < 30; i++) {
    const double found = once();
    best = found > best ? found : best;
  }
  return best;
}
