#include "graph.h"

#include "queue.cuh"

namespace pytorch_ext::cuda {

Graph::~Graph() {
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void Graph::begin(Queue& queue) {
  run("TrainStep", queue,
      [](Device device) { return cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeRelaxed); });
}

void Graph::end(Queue& queue) {
  run("TrainStep", queue, [&](Device device) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaError_t error = cudaStreamEndCapture(device.stream, &graph);
    if (error != cudaSuccess) return error;
    error = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    cudaGraphDestroy(graph);
    executable_ = executable;
    return error;
  });
}

void Graph::cancel(Queue& queue) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(static_cast<cudaStream_t>(queue.stream()), &graph) == cudaSuccess && graph)
    cudaGraphDestroy(graph);
  cudaGetLastError();
}

void Graph::launch(Queue& queue) {
  run("TrainStep", queue,
      [&](Device device) { return cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), device.stream); });
}

}  // namespace pytorch_ext::cuda
