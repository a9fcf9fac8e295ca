// How the functions of launchers.h are made of launchers: on the queue's device and stream, with its memory, and with
// every error raised.
#pragma once

#include <string>
#include <string_view>

#include "../cpu/dtypes.h"
#include "cluster.cuh"
#include "launchers.h"

// The architectures this was compiled for, as nvcc's -arch names them.
#if !defined(PYTORCH_EXT_ARCHITECTURES)
#define PYTORCH_EXT_ARCHITECTURES "those nvcc chose"
#endif

namespace pytorch_ext::cuda {

using device::Device;
using device::PORTABLE_CLUSTER;

// Code for devices before 9.0, which later ones may run, has clusters of one block.
constexpr bool BUILT_FOR_CLUSTERS =
    std::string_view(PYTORCH_EXT_ARCHITECTURES).find("sm_9") != std::string_view::npos ||
    std::string_view(PYTORCH_EXT_ARCHITECTURES).find("sm_1") != std::string_view::npos;

// The device as the launchers see it, which becomes the runtime's current one: this library's runtime is not torch's.
inline cudaError_t enter(const Queue& queue, Device& device) {
  // Of the devices asked before; all threads would write the same.
  static int major[64], multiprocessors[64], shared_bytes[64];
  const int number = queue.device();
  device = {static_cast<cudaStream_t>(queue.stream()), 1, 48 << 10};
  cudaError_t error = cudaSetDevice(number);
  if (error != cudaSuccess || number >= 64) return error;
  if (shared_bytes[number] == 0) {
    error = cudaDeviceGetAttribute(&major[number], cudaDevAttrComputeCapabilityMajor, number);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&multiprocessors[number], cudaDevAttrMultiProcessorCount, number);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&shared_bytes[number], cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
    if (error != cudaSuccess) return error;
  }
  device.multiprocessors = multiprocessors[number];
  device.shared_bytes = shared_bytes[number];
  device.most_cluster = BUILT_FOR_CLUSTERS && major[number] >= 9 ? PORTABLE_CLUSTER : 1;
  return cudaSuccess;
}

inline std::string describe(cudaError_t error, int number) {
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorUnsupportedPtxVersion)
    return cudaGetErrorString(error);
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number);
  return "expected a device that runs one of " PYTORCH_EXT_ARCHITECTURES ", got compute capability " +
         std::to_string(major) + "." + std::to_string(minor);
}

// run(op, queue, [&](Device device) { return launcher(..., device); })
template <class Launch>
void run(const char* op, Queue& queue, Launch&& launch) {
  Device device;
  cudaError_t error = enter(queue, device);
  if (error == cudaSuccess) error = launch(device);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgotten here, as it is raised
  queue.fail(op, error, describe(error, queue.device()).c_str());
}

// `count` elements for the launcher's own use.
template <class T>
T* workspace(Queue& queue, int64_t count) {
  return static_cast<T*>(queue.workspace(count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace pytorch_ext::cuda
