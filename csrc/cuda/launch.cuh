// What every CUDA kernel and launcher needs. A launcher takes pointers to device memory, sizes and a stream; it asks
// the device nothing and never waits for it.
//
// Any translation unit may include these files: one that nvcc compiles, or one whose compiler knows the names of CUDA
// from another header (tests/emulator/simt.h).
#pragma once

#include <cstdint>

#include "../numerics/low_precision.h"

namespace pytorch_ext::PYTORCH_EXT_ISA {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

INLINE_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class I>
INLINE_HD constexpr I smaller(I a, I b) {
  return a < b ? a : b;
}
template <class I>
INLINE_HD constexpr I larger(I a, I b) {
  return a > b ? a : b;
}

// The number of the thread among all of the launch, and how many there are; for grids in x alone.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Dynamic shared memory; a block has one such array.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
#else
  return reinterpret_cast<T*>(simt::shared_memory);
#endif
}

// threadIdx.x, read again: what is computed from it is not kept in registers from an earlier place.
__device__ __forceinline__ int thread_anew() {
#if defined(__CUDA_ARCH__)
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return threadIdx.x;
#endif
}

// A place in shared memory that a loop moves. Of a pointer the compiler would compute the address anew every time.
template <class T>
class SharedPlace {
 public:
#if defined(__CUDA_ARCH__)
  __device__ __forceinline__ explicit SharedPlace(const T* at)
      : address_(static_cast<unsigned>(__cvta_generic_to_shared(at))) {
    asm volatile("" : "+r"(address_));
  }
  __device__ __forceinline__ void move(int bytes) { address_ += bytes; }
  __device__ __forceinline__ T* pointer() const { return static_cast<T*>(__cvta_shared_to_generic(address_)); }

 private:
  unsigned address_;
#else
  __device__ explicit SharedPlace(const T* at) : at_(const_cast<T*>(at)) {}
  __device__ void move(int bytes) { at_ += bytes / static_cast<int>(sizeof(T)); }
  __device__ T* pointer() const { return at_; }

 private:
  T* at_;
#endif
};

// What is addressed from here on is addressed from this pointer to global memory: else the compiler keeps an address
// for each element.
template <class T>
__device__ __forceinline__ void keep_pointer([[maybe_unused]] T*& pointer) {
#if defined(__CUDA_ARCH__)
  size_t address = __cvta_generic_to_global(pointer);
  asm volatile("" : "+l"(address));
  pointer = static_cast<T*>(__cvta_global_to_generic(address));
#endif
}

// Begins to copy 4, 8 or 16 bytes, aligned to as many, to shared memory, through no register: from and to so many
// bytes behind the pointers. They are there for the same thread after wait_for_copies().
template <int Bytes = 16, int To = 0, int From = 0>
__device__ __forceinline__ void begin_copy(void* shared, const void* global) {
#if defined(__CUDA_ARCH__)
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0+%2], [%1+%3], 16;" ::"r"(to), "l"(global), "n"(To), "n"(From)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0+%3], [%1+%4], %2;" ::"r"(to), "l"(global), "n"(Bytes), "n"(To),
                 "n"(From)
                 : "memory");
#elif !defined(__CUDACC__)
  simt::begin_copy(static_cast<char*>(shared) + To, static_cast<const char*>(global) + From, Bytes);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::wait_for_copies();
#endif
}

// Ends the launch as a failed assert does, with the text on stderr, unless `condition` holds.
__device__ __forceinline__ void require(bool condition, const char* expectation) {
  if (condition) return;
#if defined(__CUDA_ARCH__)
  __assert_fail(expectation, "pytorch_ext", __LINE__, "");
#elif !defined(__CUDACC__)
  simt::fail(expectation);
#endif
}

// Where a launcher launches, for how many multiprocessors it divides its work, how many bytes of shared memory a block
// may have, and of how many blocks a cluster may be (cluster.cuh; 1: there are none): the caller knows the device.
struct Device {
  cudaStream_t stream;
  int multiprocessors, shared_bytes, most_cluster = 1;
};

// The configuration of a kernel's launch on `blocks` blocks in x, which the kernel is prepared for.
template <class... Parameters>
cudaError_t configure(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Device device,
                      cudaLaunchConfig_t& config) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = device.stream;
  if (shared_bytes <= (48 << 10)) return cudaSuccess;  // what a launch may have without asking
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

// Runs a kernel on `blocks` blocks in x; none is no launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Device device,
                   Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config;
  const cudaError_t error = configure(kernel, blocks, threads, shared_bytes, device, config);
  return error != cudaSuccess ? error : cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
