// The launchers of csrc/cuda with C linkage. Compiled by a C++ compiler it runs their kernels in the emulator; compiled
// by nvcc it is the list of all kernels.
#if !defined(__CUDACC__)
#include "simt.h"
#endif

#include "../../csrc/cuda/cross_entropy.cuh"
#include "../../csrc/cuda/elementwise_loss.cuh"
#include "../../csrc/cuda/linear.cuh"
#include "../../csrc/cuda/optimizers.cuh"
#include "../../csrc/cuda/product.cuh"
#include "../../csrc/cuda/softmax.cuh"

using namespace pytorch_ext;
namespace kernels = pytorch_ext::PYTORCH_EXT_ISA;

namespace {
kernels::Device machine{nullptr, 132};
}

#if !defined(__CUDACC__)
// Kernels with a fault each, for the emulator's own tests.
__global__ void diverged_barrier_kernel() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void shuffle_from_ended_lane_kernel() {
  if (threadIdx.x < 31) __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void shuffle_from_absent_lane_kernel() {
  if (threadIdx.x < 31) __shfl_sync(0x7fffffffu, 1, 31);
}
__global__ void missing_barrier_kernel(int* y) {  // 1 where the next thread has already written
  __shared__ int x[64];
  x[threadIdx.x] = 0;
  __syncthreads();
  y[threadIdx.x] = x[(threadIdx.x + 1) % 64];
  x[threadIdx.x] = 1;
}
int launch_faulty(void (*kernel)(), int threads) { return kernels::launch(kernel, 1, threads, 0, machine); }
#endif

extern "C" {

void set_multiprocessors(int count) { machine.multiprocessors = count; }

int64_t product_workspace(const Product<float>* p) { return kernels::product_workspace(*p, machine); }
int product(const Product<float>* p, float* workspace) { return kernels::product(*p, workspace, machine); }

int64_t linear_gradient_workspace(const LinearGradient<float>* p) { return kernels::linear_gradient_workspace(*p); }
int linear_gradient(const LinearGradient<float>* p, float* workspace) {
  return kernels::linear_gradient(*p, workspace, machine);
}

int64_t elementwise_loss_workspace(const ElementwiseLossArrays<float>* p) {
  return kernels::elementwise_loss_workspace(*p);
}
int elementwise_loss(const ElementwiseLossArrays<float>* p, float* workspace) {
  return kernels::elementwise_loss(*p, workspace, machine);
}

int softmax(const Softmax<float>* p) { return kernels::softmax(*p, machine); }
int softmax_gradient(const SoftmaxGradient<float>* p) { return kernels::softmax_gradient(*p, machine); }

int64_t cross_entropy_workspace(const ClassificationLoss<float>* p) { return kernels::cross_entropy_workspace(*p); }
int cross_entropy(const ClassificationLoss<float>* p, float* workspace) {
  return kernels::cross_entropy(*p, workspace, machine);
}

int sgd_step(const SgdRule<float>* rule, const SgdTensor<float>* tensors, int64_t count) {
  return kernels::sgd_step<float>(*rule, tensors, count, machine);
}
int adam_step(const AdamRule<float>* rule, const AdamTensor<float>* tensors, int64_t count) {
  return kernels::adam_step<float>(*rule, tensors, count, machine);
}

#if !defined(__CUDACC__)
void fma_floats(int64_t n, const float* a, const float* b, const float* c, float* y) {
  for (int64_t i = 0; i < n; i++) y[i] = kernels::fma(a[i], b[i], c[i]);
}
void fma_doubles(int64_t n, const double* a, const double* b, const double* c, double* y) {
  for (int64_t i = 0; i < n; i++) y[i] = kernels::fma(a[i], b[i], c[i]);
}

int diverged_barrier() { return launch_faulty(diverged_barrier_kernel, 32); }
int shuffle_from_ended_lane() { return launch_faulty(shuffle_from_ended_lane_kernel, 32); }
int shuffle_from_absent_lane() { return launch_faulty(shuffle_from_absent_lane_kernel, 32); }
int too_many_threads() { return launch_faulty(diverged_barrier_kernel, 1025); }
int missing_barrier(int* y) { return kernels::launch(missing_barrier_kernel, 1, 64, 0, machine, y); }

void emulator_reverse(int on) { simt::reversed = on; }
void emulator_record(int on) {
  simt::recording = on;
  simt::recorded.clear();
}
const char* emulator_error() { return simt::error.c_str(); }
int64_t emulator_launches() { return simt::launches; }
int recorded_launches() { return static_cast<int>(simt::recorded.size()); }
const char* recorded_kernel(int i) { return simt::recorded[i].kernel.c_str(); }
void recorded_shape(int i, int64_t* shape) {  // grid, block, bytes of shared memory
  const simt::Launch& l = simt::recorded[i];
  const int64_t all[] = {l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, int64_t(l.shared_bytes)};
  for (int d = 0; d < 7; d++) shape[d] = all[d];
}
int recorded_arguments(int i) { return static_cast<int>(simt::recorded[i].arguments.size()); }
const char* recorded_argument(int i, int j, int64_t* bytes) {
  *bytes = static_cast<int64_t>(simt::recorded[i].arguments[j].size());
  return simt::recorded[i].arguments[j].data();
}
#endif
}
