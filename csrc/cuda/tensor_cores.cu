#include "tensor_cores_launch.cuh"

#include <string_view>

#include "queue.cuh"

namespace pytorch_ext::cuda {
namespace {

using device::EncodeTiled;

constexpr bool BUILT_FOR_SM_90A = std::string_view(PYTORCH_EXT_ARCHITECTURES).find("sm_90a") != std::string_view::npos;

bool is_sm_90(int number) {
  static int capabilities[64];  // of the devices asked before; every thread would write the same
  if (number < 0 || number >= 64) return false;
  int &capability = capabilities[number], major = 0, minor = 0;
  if (capability == 0 && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number) == cudaSuccess)
    capability = 10 * major + minor;
  return capability == 90;
}

// cuTensorMapEncodeTiled of the driver that is there, which this library is not linked with; null where there is none.
EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  constexpr const char* name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &result);
#endif
  const bool found = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return found ? reinterpret_cast<EncodeTiled>(function) : nullptr;
}

}  // namespace

bool has_tensor_cores(int number) { return BUILT_FOR_SM_90A && is_sm_90(number); }

template <class S>
bool covers(const TensorCoreProduct<S>& p) {
  device::TensorCorePlan plan;
  return device::plan_tensor_core_product(p, /*multiprocessors=*/1, plan);
}

template <class S>
void tensor_core_product(const TensorCoreProduct<S>& p, Queue& queue) {
  run("product", queue, [&](Device device) {
    if (!has_tensor_cores(queue.device())) return cudaErrorNoKernelImageForDevice;
    static const EncodeTiled encode_tiled = find_encode_tiled();
    if (!encode_tiled)
      queue.fail("product", cudaErrorSymbolNotFound, "expected a driver with cuTensorMapEncodeTiled, got one without");
    return device::tensor_core_product(p, encode_tiled, device);
  });
}

#define INSTANTIATE(S)                                  \
  template bool covers<S>(const TensorCoreProduct<S>&); \
  template void tensor_core_product<S>(const TensorCoreProduct<S>&, Queue&);
INSTANTIATE(BFloat16)
INSTANTIATE(Half)

}  // namespace pytorch_ext::cuda
