// torch's stream, memory and errors for the launchers of csrc/cuda.
#include "kernel.h"

#include <ATen/ops/empty.h>

#include <utility>

namespace pytorch_ext {
namespace {

thread_local KeptWorkspaces* workspaces_in_use = nullptr;

Tensor bytes_on(c10::Device device, int64_t count) { return at::empty({count}, at::device(device).dtype(at::kByte)); }

}  // namespace

void* KeptWorkspaces::get(size_t index, int64_t bytes, c10::Device device) {
  if (bytes == 0) return nullptr;
  if (kept_.size() <= index) kept_.resize(index + 1);
  if (!kept_[index].defined() || kept_[index].numel() < bytes) kept_[index] = bytes_on(device, bytes);
  return kept_[index].mutable_data_ptr();
}

UseWorkspaces::UseWorkspaces(KeptWorkspaces& from) : before_(std::exchange(workspaces_in_use, &from)) {}
UseWorkspaces::~UseWorkspaces() { workspaces_in_use = before_; }

}  // namespace pytorch_ext

#if defined(PYTORCH_EXT_CUDA)

#include <c10/core/impl/VirtualGuardImpl.h>

namespace pytorch_ext {

CurrentQueue::CurrentQueue(const Tensor& on) : guard_(on.device()) {
  c10::impl::VirtualGuardImpl implementation(on.device().type());
  stream_ = implementation.getStreamNativeHandle(implementation.getStream(on.device()));
}

void* CurrentQueue::workspace(int64_t bytes) {
  if (workspaces_in_use) return workspaces_in_use->get(kept_++, bytes, guard_.current_device());
  if (bytes == 0) return nullptr;
  workspaces_.push_back(bytes_on(guard_.current_device(), bytes));
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
