#include "scaled_dot_product_attention.cuh"

#include "queue.cuh"

// Compiled with product.cu and softmax.cu.
namespace pytorch_ext::device {

extern template cudaError_t product(const Product<float>&, float*, Device);
extern template cudaError_t product(const Product<double>&, double*, Device);
extern template cudaError_t softmax(const Softmax<float>&, Device);
extern template cudaError_t softmax(const Softmax<double>&, Device);
extern template cudaError_t softmax_gradient(const SoftmaxGradient<float>&, Device);
extern template cudaError_t softmax_gradient(const SoftmaxGradient<double>&, Device);

}  // namespace pytorch_ext::device

namespace pytorch_ext::cuda {

template <class T>
void scaled_dot_product_attention(const AttentionOutput<T>& p, Queue& queue) {
  run("scaled_dot_product_attention", queue, [&](Device device) {
    return device::attention(p, workspace<T>(queue, device::attention_workspace(p, device)), device);
  });
}

template <class T>
void scaled_dot_product_attention_gradient(const AttentionGradient<T>& p, Queue& queue) {
  run("scaled_dot_product_attention_backward", queue, [&](Device device) {
    return device::attention(p, workspace<T>(queue, device::attention_workspace(p, device)), device);
  });
}

#define INSTANTIATE(T)                                                              \
  template void scaled_dot_product_attention<T>(const AttentionOutput<T>&, Queue&); \
  template void scaled_dot_product_attention_gradient<T>(const AttentionGradient<T>&, Queue&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pytorch_ext::cuda
