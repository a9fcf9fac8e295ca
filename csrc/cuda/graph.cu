#include "graph.h"

#include "graph.cuh"
#include "queue.cuh"

namespace pytorch_ext::cuda {
namespace {

// The next launches' arguments of the node of begin_graph().
cudaError_t set_arguments(void* executable, void* node, const GraphArguments& arguments) {
  void* values[] = {const_cast<GraphArguments*>(&arguments)};
  cudaKernelNodeParams kernel{};
  kernel.func = reinterpret_cast<void*>(device::begin_graph_kernel);
  kernel.gridDim = dim3(static_cast<unsigned>(device::begin_graph_blocks(arguments)));
  kernel.blockDim = dim3(device::GRAPH_THREADS);
  kernel.kernelParams = values;
  return cudaGraphExecKernelNodeSetParams(static_cast<cudaGraphExec_t>(executable), static_cast<cudaGraphNode_t>(node),
                                          &kernel);
}

}  // namespace

Graph::~Graph() {
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  if (graph_) cudaGraphDestroy(static_cast<cudaGraph_t>(graph_));
}

void Graph::begin(Queue& queue) {
  run("TrainStep", queue,
      [](Device device) { return cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeRelaxed); });
}

// The graph stays: its node names that of the executable one.
void Graph::end(Queue& queue, const GraphArguments& arguments) {
  run("TrainStep", queue, [&](Device device) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaGraphNode_t first = nullptr;
    size_t count = 1;
    cudaError_t error = cudaStreamEndCapture(device.stream, &graph);
    graph_ = graph;
    if (error == cudaSuccess) error = cudaGraphGetRootNodes(graph, &first, &count);
    if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    executable_ = executable, first_ = first;
    return error == cudaSuccess ? set_arguments(executable, first, arguments) : error;
  });
}

void Graph::cancel(Queue& queue) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(static_cast<cudaStream_t>(queue.stream()), &graph) == cudaSuccess && graph)
    cudaGraphDestroy(graph);
  cudaGetLastError();
}

void Graph::launch(Queue& queue, const GraphArguments& arguments) {
  run("TrainStep", queue, [&](Device device) {
    const cudaError_t error = set_arguments(executable_, first_, arguments);
    return error == cudaSuccess ? cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), device.stream) : error;
  });
}

void begin_graph(const GraphArguments& p, Queue& queue) {
  run("TrainStep", queue, [&](Device device) { return device::begin_graph(p, device); });
}

void end_graph(const void* result, int64_t bytes, void* const* to, Queue& queue) {
  run("TrainStep", queue, [&](Device device) {
    return device::end_graph(static_cast<const uint32_t*>(result), static_cast<int>(bytes / sizeof(uint32_t)),
                             reinterpret_cast<uint32_t* const*>(to), device);
  });
}

}  // namespace pytorch_ext::cuda
