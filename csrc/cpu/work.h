// How work is measured where it is cut for threads.
#pragma once

#include "../numerics/platform.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

// Multiplications that take about as long (3 us with AVX-512) as it takes to wake another thread and wait for it.
constexpr double WORK_PER_THREAD = 3e5;

INLINE_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
