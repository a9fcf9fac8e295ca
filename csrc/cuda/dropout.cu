#include "dropout.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void dropout(const Dropout<S>& p, Queue& queue) {
  run("dropout", queue, [&](Device device) { return device::dropout(p, device); });
}

#define INSTANTIATE(S) template void dropout<S>(const Dropout<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
