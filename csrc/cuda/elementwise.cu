#include "elementwise.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void apply_function(Function f, int64_t n, const S* x, S* y, Queue& queue) {
  run("apply_function", queue, [&](Device device) { return device::apply_function(f, n, x, y, device); });
}

template void apply_function<float>(Function, int64_t, const float*, float*, Queue&);
template void apply_function<double>(Function, int64_t, const double*, double*, Queue&);

}  // namespace pytorch_ext::cuda
