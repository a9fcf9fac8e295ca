#include "cross_entropy.cuh"

#include "nll_loss.cuh"
#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void cross_entropy(const ClassificationLoss<S>& p, Queue& queue) {
  run("cross_entropy", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::cross_entropy_workspace(p));
    return device::cross_entropy(p, own, device);
  });
}

template <class S>
void nll_loss(const ClassificationLoss<S>& p, Queue& queue) {
  run("nll_loss", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::nll_loss_workspace(p));
    return device::nll_loss(p, own, device);
  });
}

#define INSTANTIATE(S)                                                  \
  template void cross_entropy<S>(const ClassificationLoss<S>&, Queue&); \
  template void nll_loss<S>(const ClassificationLoss<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
