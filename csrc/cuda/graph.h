// Launches that are recorded once and sent to a device as one: CUDA's graphs. No CUDA header is needed to include this.
#pragma once

#include "graph_arguments.h"
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
  // done. The first of it is begin_graph(). Other threads and streams go on as they would.
  void begin(Queue& queue);
  void end(Queue& queue, const GraphArguments& arguments);
  // Instead of end(): nothing is recorded.
  void cancel(Queue& queue) noexcept;
  // Does all that was recorded, with the arguments it had then, but begin_graph() with these, of as large inputs.
  void launch(Queue& queue, const GraphArguments& arguments);

 private:
  void *graph_ = nullptr, *executable_ = nullptr, *first_ = nullptr;
};

// What a graph begins and ends with: copies the inputs and the numbers to where the other launches read them; the
// result, so many times 4 bytes, to the address that is one of the numbers.
void begin_graph(const GraphArguments& p, Queue& queue);
void end_graph(const void* result, int64_t bytes, void* const* to, Queue& queue);

// sgd_step() and adam_step() by the numbers in the device's memory, those of GraphArguments, when the kernel runs.
template <class S>  // float and double
void recorded_sgd_step(const SgdRule<S>* rule, const SgdTensor<S>* tensors, int64_t count, Queue& queue);
template <class S>
void recorded_adam_step(const AdamNumbers<S>* numbers, const AdamTensor<S>* tensors, int64_t count, Queue& queue);

}  // namespace pytorch_ext::cuda
