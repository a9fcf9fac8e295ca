// What csrc/cuda/tensor_cores.cu defines, for the emulated device, which has no tensor cores.
#include "../../csrc/cuda/launchers.h"
#include "runtime.h"

namespace pytorch_ext::cuda {

bool has_tensor_cores(int) { return false; }

template <class S>
bool covers(const TensorCoreProduct<S>&) {
  return false;
}
template <class S>
void tensor_core_product(const TensorCoreProduct<S>&, Queue& queue) {
  queue.fail("product", cudaErrorNotSupported, "expected a device with tensor cores, got the emulated one");
}

#define INSTANTIATE(S)                                  \
  template bool covers<S>(const TensorCoreProduct<S>&); \
  template void tensor_core_product<S>(const TensorCoreProduct<S>&, Queue&);
INSTANTIATE(BFloat16)
INSTANTIATE(Half)

}  // namespace pytorch_ext::cuda
