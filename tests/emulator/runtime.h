// The CUDA runtime of an emulated device, for csrc/cuda/*.cu compiled by a C++ compiler: what simt.h lacks.
//
// A stream is a number; what is sent to one runs at once. A stream whose work is captured keeps it for a graph, and
// launching that graph runs it, with the arguments it was given then.
#pragma once

#include <list>
#include <set>

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
  std::vector<simt::Work> work;
  CUgraph_st* made_of = nullptr;  // of an executable graph
};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraph_st*;

struct CUgraphNode_st {
  cudaGraph_t graph;
  size_t index;
};
using cudaGraphNode_t = CUgraphNode_st*;

struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};

namespace simt {

inline int64_t multiprocessors = 132, compute_capability = 9;
inline cudaStream_t captured_stream;  // of the capture that is going on,
inline cudaGraph_t capture;           // whose work this gathers; or null
inline unsigned long long captures;   // that have begun
inline std::set<cudaGraph_t> graphs;  // that are alive
inline int64_t graph_launches;
inline int64_t sent;         // to streams, by the host: a launch, a copy, a graph
inline std::string refused;  // the name of a function that fails

inline bool is_captured(cudaStream_t stream) { return capture && stream == captured_stream; }
inline cudaGraph_t new_graph(CUgraph_st graph = {}) { return *graphs.insert(new CUgraph_st(std::move(graph))).first; }

inline const bool postpones = [] {
  postpone = [](cudaStream_t stream, Work work) {
    if (!is_captured(stream)) return sent++, false;
    capture->work.push_back(std::move(work));
    return true;
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
  // The legacy stream cannot be captured.
  if (!stream || simt::capture || simt::refused == "cudaStreamBeginCapture") return cudaErrorNotSupported;
  simt::captured_stream = stream;
  simt::capture = simt::new_graph();
  simt::captures++;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!simt::is_captured(stream)) return cudaErrorInvalidValue;
  *graph = simt::capture;
  simt::capture = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = simt::new_graph({graph->work, graph});
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  simt::graphs.erase(graph);
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }
// Work comes one behind the other: there is one root.
inline cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  static std::list<CUgraphNode_st> all;  // outlive their graphs, so that a dangling one can be told
  if (graph->work.empty()) return *count = 0, cudaSuccess;
  all.push_back({graph, 0});
  *nodes = &all.back(), *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                    const cudaKernelNodeParams* p) {
  if (simt::refused == "cudaGraphExecKernelNodeSetParams") return cudaErrorNotSupported;
  if (!simt::graphs.count(exec) || !simt::graphs.count(node->graph) || exec->made_of != node->graph)
    return cudaErrorInvalidValue;
  simt::Work& work = exec->work[node->index];
  if (!work.kernel || work.kernel != p->func) return cudaErrorInvalidValue;
  work.run = work.with(p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams);
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (simt::refused == "cudaGraphLaunch") return cudaErrorNotSupported;
  simt::graph_launches++;
  const auto all = [graph = *exec] {
    for (const simt::Work& work : graph.work)
      if (const cudaError_t error = work.run(); error != cudaSuccess) return error;
    return cudaSuccess;
  };
  return simt::postpone(stream, {all}) ? cudaSuccess : all();
}
