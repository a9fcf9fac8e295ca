#include "graphs.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace pytorch_ext::train {
namespace {

constexpr size_t MOST = 8;  // graphs of one TrainStep: each costs tens of kilobytes of the device's memory

}  // namespace

std::list<Graphs::Known>::iterator Graphs::find(const LaunchKey& key) {
  const auto found = std::find_if(known_.begin(), known_.end(), [&](const Known& k) { return k.key == key; });
  if (found != known_.end()) known_.splice(known_.begin(), known_, found);
  return found;
}

void Graphs::remember(LaunchKey key) {
  if (!works_ || find(key) != known_.end()) return;
  known_.push_front({std::move(key), std::make_unique<Graph>()});
  if (known_.size() > MOST) known_.pop_back();
}

#if defined(PYTORCH_EXT_CUDA)

void Graphs::run(const Tensor& on, const LaunchKey& key, const GraphArguments& arguments,
                 const std::function<void()>& launches, const Tensor& result, void* const* to) {
  const auto all = [&] {
    CurrentQueue queue(on);
    cuda::begin_graph(arguments, queue);
    launches();
    cuda::end_graph(result.const_data_ptr(), static_cast<int64_t>(result.nbytes()), to, queue);
  };
  const auto found = find(key);
  if (!works_ || found == known_.end() || (!found->graph->is_recorded() && !record(on, *found->graph, arguments, all)))
    return all();
  CurrentQueue queue(on);
  found->graph->launch(queue, arguments);
}

bool Graphs::record(const Tensor& on, Graph& graph, const GraphArguments& arguments,
                    const std::function<void()>& launches) {
  try {
    if (!stream_) stream_ = c10::impl::VirtualGuardImpl(on.device().type()).getStreamFromGlobalPool(on.device(), false);
    c10::StreamGuard guard(*stream_);
    CurrentQueue queue(on);
    graph.begin(queue);
    try {
      launches();
    } catch (...) {
      graph.cancel(queue);
      throw;
    }
    graph.end(queue, arguments);
  } catch (const c10::Error&) {
    works_ = false;
    clear();
  }
  return works_;
}

#else

void Graphs::run(const Tensor&, const LaunchKey&, const GraphArguments&, const std::function<void()>& launches,
                 const Tensor&, void* const*) {
  launches();
}

#endif

std::optional<c10::Stream> current_stream(const Tensor& on) {
  if (on.is_cpu()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(on.device().type()).getStream(on.device());
}

}  // namespace pytorch_ext::train
