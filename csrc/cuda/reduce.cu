#include "sum_slices.cuh"

#include "queue.cuh"

namespace pytorch_ext::cuda {

template <class S>
void sum_slices(const SliceSum<S>& p, Queue& queue) {
  run("sum_to_size", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::sum_slices_workspace(p));
    return device::sum_slices(p, own, device);
  });
}

#define INSTANTIATE(S) template void sum_slices<S>(const SliceSum<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
