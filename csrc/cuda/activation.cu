#include "activation.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void activation(Activation kind, int64_t n, const S* x, S* y, Queue& queue) {
  run("activation", queue, [&](Device device) { return device::activation(kind, n, x, y, device); });
}

template <class S>
void activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx, Queue& queue) {
  run("activation_backward", queue,
      [&](Device device) { return device::activation_gradient(kind, n, grad, saved, dx, device); });
}

#define INSTANTIATE(S)                                                    \
  template void activation<S>(Activation, int64_t, const S*, S*, Queue&); \
  template void activation_gradient<S>(Activation, int64_t, const S*, const S*, S*, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
