#include "parallel.h"

#include <ATen/Parallel.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace pytorch_ext::cpu {
namespace {

// The floating-point mode belongs to a thread, so it is set inside every task and not once by the caller.
#if defined(__x86_64__)
class IeeeMode {
 public:
  IeeeMode() : saved_(_mm_getcsr()) {
    if ((saved_ & kModeBits) != kIeee) _mm_setcsr((saved_ & ~kModeBits) | kIeee);
  }
  ~IeeeMode() {
    if ((saved_ & kModeBits) != kIeee) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kModeBits = 0xffc0, kIeee = 0x1f80;  // FZ, RC, exception masks, DAZ
  unsigned saved_;
};
#elif defined(__aarch64__)
class IeeeMode {
 public:
  IeeeMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ & kModeBits) asm volatile("msr fpcr, %0" : : "r"(saved_ & ~kModeBits));
  }
  ~IeeeMode() {
    if (saved_ & kModeBits) asm volatile("msr fpcr, %0" : : "r"(saved_));
  }

 private:
  static constexpr uint64_t kModeBits = 0x07c80000;  // AHP, DN, FZ, RMode, FZ16
  uint64_t saved_;
};
#else
struct IeeeMode {};
#endif

}  // namespace

void parallel_run(int64_t count, int64_t grain, RangeTask task, void* context) {
  if (count <= 0) return;
  if (count <= grain) {
    IeeeMode mode;
    return task(context, 0, count);
  }
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    IeeeMode mode;
    task(context, begin, end);
  });
}

int thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

}  // namespace pytorch_ext::cpu
