// torch's stream, memory and errors for the launchers of csrc/cuda.
#include "kernel.h"

#if defined(PYTORCH_EXT_CUDA)

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

bool is_capturing(const Tensor& t) {
  if (!t.is_cuda()) return false;
  CurrentQueue queue(t);
  return cuda::is_capturing(queue);
}

}  // namespace pytorch_ext

#else

namespace pytorch_ext {

bool is_capturing(const Tensor&) { return false; }

}  // namespace pytorch_ext

#endif
