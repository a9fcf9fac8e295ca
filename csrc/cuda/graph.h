// Launches that are recorded once and sent to a device as one: CUDA's graphs. No CUDA header is needed to include this.
#pragma once

#include "launchers.h"

namespace pytorch_ext::cuda {

class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  bool is_recorded() const { return executable_; }
  // From begin() to end() what is sent to the queue's stream, which may not be the default one, is recorded and not
  // done. Other threads and streams go on as they would.
  void begin(Queue& queue);
  void end(Queue& queue);
  // Instead of end(): nothing is recorded.
  void cancel(Queue& queue) noexcept;
  // Does all that was recorded, with the arguments it had then.
  void launch(Queue& queue);

 private:
  void* executable_ = nullptr;
};

}  // namespace pytorch_ext::cuda
