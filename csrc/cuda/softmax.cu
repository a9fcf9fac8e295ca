#include "softmax.cuh"

#include "queue.cuh"

namespace pytorch_ext::device {

template cudaError_t softmax(const Softmax<float>&, Device);
template cudaError_t softmax(const Softmax<double>&, Device);
template cudaError_t softmax_gradient(const SoftmaxGradient<float>&, Device);
template cudaError_t softmax_gradient(const SoftmaxGradient<double>&, Device);

}  // namespace pytorch_ext::device

namespace pytorch_ext::cuda {

template <class S>
void softmax(const Softmax<S>& p, Queue& queue) {
  run("softmax", queue, [&](Device device) { return device::softmax(p, device); });
}

template <class S>
void softmax_gradient(const SoftmaxGradient<S>& p, Queue& queue) {
  run("softmax_backward", queue, [&](Device device) { return device::softmax_gradient(p, device); });
}

#define INSTANTIATE(S)                                 \
  template void softmax<S>(const Softmax<S>&, Queue&); \
  template void softmax_gradient<S>(const SoftmaxGradient<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
