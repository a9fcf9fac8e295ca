#include "linear.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void linear_gradient(const LinearGradient<S>& p, Queue& queue) {
  run("linear_backward", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::linear_gradient_workspace(p));
    return device::linear_gradient(p, own, device);
  });
}

#define INSTANTIATE(S) template void linear_gradient<S>(const LinearGradient<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
