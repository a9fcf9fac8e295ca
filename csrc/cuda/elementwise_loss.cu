#include "elementwise_loss.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
bool elementwise_loss(const ElementwiseLossArrays<S>& p, Queue& queue) {
  run("elementwise_loss", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::elementwise_loss_workspace(p));
    return device::elementwise_loss(p, own, device);
  });
  return true;
}

#define INSTANTIATE(S) template bool elementwise_loss<S>(const ElementwiseLossArrays<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
