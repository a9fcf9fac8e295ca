// The launches of a batch as graphs, for the batches that come again and again.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "../cuda/graph_arguments.h"
#include "../launch/kernel.h"

#if defined(PYTORCH_EXT_CUDA)
#include "../cuda/graph.h"
#endif

namespace pytorch_ext::train {

// Everything that the arguments of the launches depend on: sizes, and the addresses of all memory.
using LaunchKey = std::vector<int64_t>;

class Graphs {
 public:
  // From now on run() may be called with the key: what comes a second time is worth a graph.
  void remember(LaunchKey key);
  bool knows(const LaunchKey& key) { return works_ && find(key) != known_.end(); }
  // Does what launches() sends to the current stream of the device of `on`, behind a kernel that puts the arguments
  // where it finds them, and before one that copies the result to the address `*to`, one of these. The first time it is
  // recorded, on a stream of its own, and from then on launches() is not called any more. Where recording fails it is
  // called every time.
  void run(const Tensor& on, const LaunchKey& key, const GraphArguments& arguments,
           const std::function<void()>& launches, const Tensor& result, void* const* to);
  void clear() { known_.clear(); }

 private:
#if defined(PYTORCH_EXT_CUDA)
  using Graph = cuda::Graph;
#else
  struct Graph {};
#endif
  struct Known {
    LaunchKey key;
    std::unique_ptr<Graph> graph;
  };
  std::list<Known>::iterator find(const LaunchKey& key);
  bool record(const Tensor& on, Graph& graph, const GraphArguments& arguments, const std::function<void()>& launches);

  std::list<Known> known_;  // the last used first
  std::optional<c10::Stream> stream_;
  bool works_ = true;
};

// The current stream of the tensor's device; none on the CPU.
std::optional<c10::Stream> current_stream(const Tensor& on);

}  // namespace pytorch_ext::train
