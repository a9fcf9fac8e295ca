#include "optimizers.cuh"

#include "graph.h"
#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void sgd_step(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>* tensors, int64_t count, Queue& queue) {
  run("SGD", queue, [&](Device device) { return device::sgd_step<S>(rule, tensors, count, device); });
}

template <class S>
void adam_step(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>* tensors, int64_t count, Queue& queue) {
  run("Adam", queue, [&](Device device) { return device::adam_step<S>(rule, tensors, count, device); });
}

template <class S>
void recorded_sgd_step(const SgdRule<S>* rule, const SgdTensor<S>* tensors, int64_t count, Queue& queue) {
  run("SGD", queue, [&](Device device) { return device::sgd_step<S>(rule, tensors, count, device); });
}

template <class S>
void recorded_adam_step(const AdamNumbers<S>* numbers, const AdamTensor<S>* tensors, int64_t count, Queue& queue) {
  run("Adam", queue, [&](Device device) { return device::adam_step<S>(numbers, tensors, count, device); });
}

template <class S>
void gradient_norm(const GradTensor<S>* tensors, int64_t count, compute_t<S>* norm, Queue& queue) {
  run("clip_grad_norm_", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::gradient_norm_workspace(tensors, count));
    return device::gradient_norm(tensors, count, norm, own, device);
  });
}

template <class S>
void clip_gradients(const GradTensor<S>* tensors, int64_t count, compute_t<S> max_norm, const compute_t<S>* norm,
                    Queue& queue) {
  run("clip_grad_norm_", queue,
      [&](Device device) { return device::clip_gradients(tensors, count, max_norm, norm, device); });
}

#define INSTANTIATE(S)                                                                              \
  template void sgd_step<S>(const SgdRule<compute_t<S>>&, const SgdTensor<S>*, int64_t, Queue&);    \
  template void adam_step<S>(const AdamRule<compute_t<S>>&, const AdamTensor<S>*, int64_t, Queue&); \
  template void gradient_norm<S>(const GradTensor<S>*, int64_t, compute_t<S>*, Queue&);             \
  template void clip_gradients<S>(const GradTensor<S>*, int64_t, compute_t<S>, const compute_t<S>*, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

#define INSTANTIATE_RECORDED(S)                                                                \
  template void recorded_sgd_step<S>(const SgdRule<S>*, const SgdTensor<S>*, int64_t, Queue&); \
  template void recorded_adam_step<S>(const AdamNumbers<S>*, const AdamTensor<S>*, int64_t, Queue&);
INSTANTIATE_RECORDED(float)
INSTANTIATE_RECORDED(double)

}  // namespace pytorch_ext::cuda
