// Threads for kernels that know nothing of torch. The number of threads is torch's; no result depends on it.
#pragma once

#include <cstdint>

namespace pytorch_ext::cpu {

using RangeTask = void (*)(void* context, int64_t begin, int64_t end);

// Cuts [0, count) into at most one range per thread, none shorter than `grain`, and runs the task on each with IEEE
// arithmetic (no flush to zero, round to nearest), whatever the caller has set. Nested calls run in the calling thread.
void parallel_run(int64_t count, int64_t grain, RangeTask task, void* context);
int thread_count();

template <class Body>
inline void parallel_for(int64_t count, int64_t grain, Body&& body) {
  auto task = [](void* context, int64_t begin, int64_t end) { (*static_cast<decltype(&body)>(context))(begin, end); };
  parallel_run(count, grain, task, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace pytorch_ext::cpu
