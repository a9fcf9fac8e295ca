#include "product.cuh"

#include "batch_offsets.cuh"
#include "queue.cuh"

namespace pytorch_ext::device {

template cudaError_t product(const Product<float>&, float*, Device);
template cudaError_t product(const Product<double>&, double*, Device);

}  // namespace pytorch_ext::device

namespace pytorch_ext::cuda {

template <class S>
void product(const Product<S>& p, Queue& queue) {
  run("product", queue, [&](Device device) {
    if constexpr (sizeof(S) == 2)  // the launch code leaves these to the stock operator
      return cudaErrorInvalidValue;
    else
      return device::product(p, workspace<S>(queue, device::product_workspace(p, device)), device);
  });
}

void batch_offsets(const BatchOffsets& p, Queue& queue) {
  run("matmul", queue, [&](Device device) { return device::batch_offsets(p, device); });
}

int64_t capture_number(Queue& queue) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long number = 0;
  run("capture_number", queue,
      [&](Device device) { return cudaStreamGetCaptureInfo(device.stream, &status, &number); });
  return status == cudaStreamCaptureStatusNone ? 0 : static_cast<int64_t>(number) + 1;
}

#define INSTANTIATE(S) template void product<S>(const Product<S>&, Queue&);
PYTORCH_EXT_EACH_DTYPE(INSTANTIATE)

}  // namespace pytorch_ext::cuda
