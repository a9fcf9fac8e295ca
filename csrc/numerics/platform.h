// Where the numerics headers are compiled: host or device, and for which instruction set.
//
// Every header of this folder lives in namespace pytorch_ext::PYTORCH_EXT_ISA. The same source is compiled once per
// instruction set, so the namespace keeps code for a newer processor from being linked into an older one's path.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__FAST_MATH__)
#error "pytorch_ext: -ffast-math (or --use_fast_math) breaks the numerics contract: compile without it"
#endif

#ifndef PYTORCH_EXT_ISA
#if defined(__CUDACC__)
#define PYTORCH_EXT_ISA device
#else
#define PYTORCH_EXT_ISA baseline
#endif
#endif

#if defined(__CUDACC__)
#define INLINE_HD __host__ __device__ __forceinline__
#else
#define INLINE_HD inline __attribute__((always_inline))
#endif
