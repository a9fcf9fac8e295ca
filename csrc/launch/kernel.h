// RUN_KERNEL(on, name<S>)(arguments...): the kernel of that name for the device of the tensor `on`.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <vector>

#include "../cuda/launchers.h"
#include "tensors.h"

namespace pytorch_ext {

// Whether this build has kernels for the tensor's device, and they have passed the self-test there (self_test.cpp).
bool has_kernels(const Tensor& t);

// Whether work on the tensor's device is being recorded for a graph, to be repeated with the same numbers.
bool is_capturing(const Tensor& t);

// The number of that recording among all of the process; 0 where nothing is recorded.
int64_t capture_number(const Tensor& t);

// Memory for workspaces that stays where it is from launch to launch, so that a graph may hold its address. It is for
// launches on one stream, which run one after the other.
class KeptWorkspaces {
 public:
  // A launch's workspace number `index`; null for no bytes.
  void* get(size_t index, int64_t bytes, c10::Device device);
  const std::vector<Tensor>& all() const { return kept_; }

 private:
  std::vector<Tensor> kept_;
};

// As long as one lives, this thread's launches take their workspaces from there.
class UseWorkspaces {
 public:
  explicit UseWorkspaces(KeptWorkspaces& from);
  UseWorkspaces(const UseWorkspaces&) = delete;
  UseWorkspaces& operator=(const UseWorkspaces&) = delete;
  ~UseWorkspaces();

 private:
  KeptWorkspaces* before_;
};

#if defined(PYTORCH_EXT_CUDA)
#define CUDA_KERNEL(...) (&::pytorch_ext::cuda::__VA_ARGS__)

// torch's current stream of the tensor's device, which is the current one as long as this lives.
class CurrentQueue final : public cuda::Queue {
 public:
  explicit CurrentQueue(const Tensor& on);
  int device() const override { return guard_.current_device().index(); }
  void* stream() const override { return stream_; }
  void* workspace(int64_t bytes) override;
  [[noreturn]] void fail(const char* op, int error, const char* message) override;

 private:
  c10::DeviceGuard guard_;
  void* stream_;
  std::vector<Tensor> workspaces_;  // torch's allocator hands memory on in the order of the stream
  size_t kept_ = 0;                 // how many were KeptWorkspaces'
};
#else
#define CUDA_KERNEL(...) nullptr
#endif

template <class Result, class... Parameters, class OnCuda>
auto kernel_for(const Tensor& on, Result (*on_cpu)(Parameters...), [[maybe_unused]] OnCuda on_cuda) {
  return [=, &on](Parameters... arguments) -> Result {
    if (on.is_cpu()) return on_cpu(arguments...);
#if defined(PYTORCH_EXT_CUDA)
    CurrentQueue queue(on);
    return on_cuda(arguments..., queue);
#else
    TORCH_CHECK(false, "pytorch_ext: expected tensors on the CPU, as the native part was built without CUDA, got ",
                on.device());
#endif
  };
}

#define RUN_KERNEL(on, ...) (::pytorch_ext::kernel_for(on, CPU_KERNEL(__VA_ARGS__), CUDA_KERNEL(__VA_ARGS__)))

// Registers operators for every device with kernels: KERNEL_LIBRARY(m) { m.impl("softmax_forward", &softmax_forward); }
#define KERNEL_LIBRARY(m)                                                       \
  static void register_kernels(torch::Library&);                                \
  TORCH_LIBRARY_IMPL(pytorch_ext, CPU, library) { register_kernels(library); }  \
  TORCH_LIBRARY_IMPL(pytorch_ext, CUDA, library) { register_kernels(library); } \
  static void register_kernels(torch::Library& m)

}  // namespace pytorch_ext
