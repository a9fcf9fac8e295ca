// torch's stream, memory and errors for the launchers of csrc/cuda.
#include "kernel.h"

#if defined(PYTORCH_EXT_CUDA)

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace pytorch_ext {

CurrentQueue::CurrentQueue(const Tensor& on) : guard_(on.device()) {
  c10::impl::VirtualGuardImpl implementation(on.device().type());
  stream_ = implementation.getStreamNativeHandle(implementation.getStream(on.device()));
}

void* CurrentQueue::workspace(int64_t bytes) {
  if (bytes == 0) return nullptr;
  workspaces_.push_back(at::empty({bytes}, at::device(guard_.current_device()).dtype(at::kByte)));
  return workspaces_.back().mutable_data_ptr();
}

void CurrentQueue::fail(const char* op, int error, const char* message) {
  TORCH_CHECK(false, op, ": CUDA error ", error, " on ", guard_.current_device(), ": ", message);
}

int64_t capture_number(const Tensor& t) {
  if (!t.is_cuda()) return 0;
  CurrentQueue queue(t);
  return cuda::capture_number(queue);
}

}  // namespace pytorch_ext

#else

namespace pytorch_ext {

int64_t capture_number(const Tensor&) { return 0; }

}  // namespace pytorch_ext

#endif

namespace pytorch_ext {

bool is_capturing(const Tensor& t) { return capture_number(t) != 0; }

}  // namespace pytorch_ext
