// Stores that go past the caches, for arrays too large to stay there: an ordinary store reads the line before it
// writes.
#pragma once

#include "../numerics/vector.h"
#include "parallel.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Whether an array of `count` elements is that large. Measured on an EPYC with 32 MB of last-level cache, y = relu(x):
// of 8 MB 0.8 times the speed of ordinary stores on one thread, of 16 MB 1.2 times; on two threads 0.8 times of 16 MB,
// 1.05 times of 32 MB. To be asked outside parallel regions.
template <class S>
bool is_streamed(int64_t count) {
  constexpr int64_t bytes_per_thread = int64_t(16) << 20;
  return count * int64_t(sizeof(S)) >= bytes_per_thread * cpu::thread_count();
}

// Writes elements from `begin` on, of which any part may be left out; fences its stores at the end of its life.
template <class S>
class Stream {
 public:
  using V = ComputeV<S>;

  INLINE_HD Stream(S* begin, bool is_streamed)
      : past_cache_(can_stream && is_streamed && reinterpret_cast<uintptr_t>(begin) % sizeof(V) == 0) {}
  Stream(const Stream&) = delete;
  INLINE_HD ~Stream() {
#if defined(__x86_64__)
    if (past_cache_) _mm_sfence();  // before another thread is told that the work is done
#endif
  }

  // p lies a whole number of Vectors behind the beginning.
  INLINE_HD void put(S* p, V x, int64_t left) const {
    if constexpr (can_stream) {
      if (past_cache_ && __builtin_expect(left >= V::size, 1)) return put_past_cache(p, x);
    }
    store(p, x, left);
  }

 private:
#if defined(__x86_64__)
  static constexpr bool can_stream = sizeof(S) == sizeof(compute_t<S>);
#else
  static constexpr bool can_stream = false;
#endif

  INLINE_HD static void put_past_cache(S* p, V x) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(x.v));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(x.v));
#elif defined(__x86_64__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(x.v));
#endif
  }

  const bool past_cache_;
};

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
