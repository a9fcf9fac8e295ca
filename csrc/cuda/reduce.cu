#include "dot_product.cuh"
#include "queue.cuh"
#include "sum_slices.cuh"

namespace pytorch_ext::cuda {

template <class S>
void sum_slices(const SliceSum<S>& p, Queue& queue) {
  run("sum_to_size", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::sum_slices_workspace(p));
    return device::sum_slices(p, own, device);
  });
}

template <class S>
void dot_product(const DotProduct<S>& p, Queue& queue) {
  run("matmul", queue, [&](Device device) {
    auto* own = workspace<compute_t<S>>(queue, device::dot_product_workspace(p));
    return device::dot_product(p, own, device);
  });
}

#define INSTANTIATE(S)                                     \
  template void sum_slices<S>(const SliceSum<S>&, Queue&); \
  template void dot_product<S>(const DotProduct<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
