// The CUDA runtime of an emulated device, for csrc/cuda/*.cu compiled by a C++ compiler: what simt.h lacks.
//
// A stream is a number; what is sent to one runs at once. A stream whose work is captured keeps it for a graph, and
// launching that graph runs it, with the arguments it was given then.
#pragma once

#include "simt.h"

constexpr cudaError_t cudaErrorNoKernelImageForDevice = cudaError_t(209),
                      cudaErrorUnsupportedPtxVersion = cudaError_t(222);
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};

struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> work;
};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraph_st*;

namespace simt {

inline int64_t multiprocessors = 132, compute_capability = 9;
inline cudaStream_t captured_stream;  // of the capture that is going on,
inline cudaGraph_t capture;           // whose work this gathers; or null
inline unsigned long long captures;   // that have begun
inline int64_t graphs_alive, graph_launches;

inline bool is_captured(cudaStream_t stream) { return capture && stream == captured_stream; }

inline const bool postpones = [] {
  postpone = [](cudaStream_t stream, std::function<cudaError_t()> work) {
    if (is_captured(stream)) capture->work.push_back(std::move(work));
    return is_captured(stream);
  };
  return true;
}();

}  // namespace simt

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) {
  return simt::error.empty() ? "refused by the launcher" : simt::error.c_str();
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = static_cast<int>(simt::multiprocessors); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::MOST_SHARED_BYTES; break;
    case cudaDevAttrComputeCapabilityMajor: *value = static_cast<int>(simt::compute_capability); break;
    default: *value = 0;
  }
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t* config) {
  *clusters = static_cast<int>(simt::multiprocessors / config->attrs->val.clusterDim.x);
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* number) {
  *status = simt::is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *number = simt::captures;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || simt::capture) return cudaErrorNotSupported;  // the legacy stream cannot be captured
  simt::captured_stream = stream;
  simt::capture = new CUgraph_st;
  simt::captures++, simt::graphs_alive++;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!simt::is_captured(stream)) return cudaErrorInvalidValue;
  *graph = simt::capture;
  simt::capture = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraph_st(*graph);
  simt::graphs_alive++;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  simt::graphs_alive--;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  simt::graph_launches++;
  for (const auto& work : exec->work)
    if (!simt::postpone(stream, work))
      if (const cudaError_t error = work(); error != cudaSuccess) return error;
  return cudaSuccess;
}
