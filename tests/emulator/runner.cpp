// The launchers of csrc/cuda with C linkage, for one storage type: -DSTORAGE=float, double, BFloat16 or Half. Compiled
// by a C++ compiler it runs their kernels in the emulator; compiled by nvcc it is the list of all kernels.
#if !defined(__CUDACC__)
#include "simt.h"
#endif

#include "../../csrc/cuda/activation.cuh"
#include "../../csrc/cuda/cluster.cuh"
#include "../../csrc/cuda/cross_entropy.cuh"
#include "../../csrc/cuda/dot_product.cuh"
#include "../../csrc/cuda/dropout.cuh"
#include "../../csrc/cuda/elementwise.cuh"
#include "../../csrc/cuda/elementwise_loss.cuh"
#include "../../csrc/cuda/graph.cuh"
#include "../../csrc/cuda/linear.cuh"
#include "../../csrc/cuda/nll_loss.cuh"
#include "../../csrc/cuda/optimizers.cuh"
#include "../../csrc/cuda/product.cuh"
#if !defined(STORAGE_OF_16_BITS)
#include "../../csrc/cuda/scaled_dot_product_attention.cuh"
#endif
#include "../../csrc/cuda/softmax.cuh"
#include "../../csrc/cuda/sum_slices.cuh"
#if defined(STORAGE_IS_FLOAT)
#include "../../csrc/cuda/train_steps.cuh"
#endif

using namespace pytorch_ext;
namespace kernels = pytorch_ext::PYTORCH_EXT_ISA;

namespace {
kernels::Device machine{nullptr, 132, 227 << 10, 8};
int64_t most_scores = int64_t(1) << 25;
using S = STORAGE;
using T = compute_t<S>;
}  // namespace

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
__global__ void missing_wait_kernel(const int* x, int* y) {  // x where the copy is already there
  __shared__ int copied[32];
  copied[threadIdx.x] = 0;
  kernels::begin_copy<4>(&copied[threadIdx.x], x + threadIdx.x);
  y[threadIdx.x] = copied[threadIdx.x];
}
// Blocks of a cluster pass numbers on to the next one; the fault is the number of the barrier that is left out.
template <int fault>
__global__ void cluster_kernel(int* y) {
  int* x = kernels::dynamic_shared<int>();
  const int rank = kernels::cluster_rank(), next = (rank + 1) % kernels::cluster_size(), t = threadIdx.x;
  x[t] = 10 * rank + t;
  if (fault != 1) kernels::cluster_barrier();
  const int from_next = kernels::in_peer(x, next)[t];
  if (fault != 2) kernels::cluster_barrier();
  x[t] = 100 * from_next;
  if (fault != 3) kernels::cluster_barrier();
  y[blockIdx.x * blockDim.x + t] = kernels::in_peer(x, next)[t];
  if (fault != 4) kernels::cluster_barrier();
  if (fault == 5 && t < 20) __syncthreads();
  if (fault == 5) kernels::cluster_barrier();
  if (fault == 6) kernels::cluster_wait();
}
template <int fault>
int launch_cluster(int cluster, int* y) {
  return kernels::launch_clusters(cluster_kernel<fault>, 2 * cluster, cluster, 40, 40 * sizeof(int), machine, y);
}
int launch_faulty(void (*kernel)(), int threads) { return kernels::launch(kernel, 1, threads, 0, machine); }
#endif

extern "C" {

void set_multiprocessors(int count) { machine.multiprocessors = count; }
void set_shared_bytes(int count) { machine.shared_bytes = count; }
void set_most_cluster(int count) { machine.most_cluster = count; }
void set_most_scores(int64_t count) { most_scores = count; }

#if !defined(STORAGE_OF_16_BITS)  // 16-bit products are the stock operator's
int64_t product_workspace(const Product<S>* p) { return kernels::product_workspace(*p, machine); }
int product(const Product<S>* p, T* workspace) { return kernels::product(*p, workspace, machine); }
int64_t attention_workspace(const AttentionOutput<S>* p) {
  return kernels::attention_workspace(*p, machine, most_scores);
}
int attention(const AttentionOutput<S>* p, T* workspace) {
  return kernels::attention(*p, workspace, machine, most_scores);
}
int64_t attention_gradient_workspace(const AttentionGradient<S>* p) {
  return kernels::attention_workspace(*p, machine, most_scores);
}
int attention_gradient(const AttentionGradient<S>* p, T* workspace) {
  return kernels::attention(*p, workspace, machine, most_scores);
}
int apply_function(int f, int64_t n, const S* x, S* y) {
  return kernels::apply_function(static_cast<Function>(f), n, x, y, machine);
}
#endif
int batch_offsets(const BatchOffsets* p) { return kernels::batch_offsets(*p, machine); }

int64_t linear_gradient_workspace(const LinearGradient<S>* p) { return kernels::linear_gradient_workspace(*p); }
int linear_gradient(const LinearGradient<S>* p, T* workspace) {
  return kernels::linear_gradient(*p, workspace, machine);
}

int activation(int kind, int64_t n, const S* x, S* y) {
  return kernels::activation(static_cast<Activation>(kind), n, x, y, machine);
}
int activation_gradient(int kind, int64_t n, const S* grad, const S* saved, S* dx) {
  return kernels::activation_gradient(static_cast<Activation>(kind), n, grad, saved, dx, machine);
}
int dropout(const Dropout<S>* p) { return kernels::dropout(*p, machine); }

int64_t sum_slices_workspace(const SliceSum<S>* p) { return kernels::sum_slices_workspace(*p); }
int sum_slices(const SliceSum<S>* p, T* workspace) { return kernels::sum_slices(*p, workspace, machine); }
int64_t dot_product_workspace(const DotProduct<S>* p) { return kernels::dot_product_workspace(*p); }
int dot_product(const DotProduct<S>* p, T* workspace) { return kernels::dot_product(*p, workspace, machine); }

int64_t elementwise_loss_workspace(const ElementwiseLossArrays<S>* p) {
  return kernels::elementwise_loss_workspace(*p);
}
int elementwise_loss(const ElementwiseLossArrays<S>* p, T* workspace) {
  return kernels::elementwise_loss(*p, workspace, machine);
}

int softmax(const Softmax<S>* p) { return kernels::softmax(*p, machine); }
int softmax_gradient(const SoftmaxGradient<S>* p) { return kernels::softmax_gradient(*p, machine); }

int64_t cross_entropy_workspace(const ClassificationLoss<S>* p) { return kernels::cross_entropy_workspace(*p); }
int cross_entropy(const ClassificationLoss<S>* p, T* workspace) {
  return kernels::cross_entropy(*p, workspace, machine);
}
int64_t nll_loss_workspace(const ClassificationLoss<S>* p) { return kernels::nll_loss_workspace(*p); }
int nll_loss(const ClassificationLoss<S>* p, T* workspace) { return kernels::nll_loss(*p, workspace, machine); }

int sgd_step(const SgdRule<T>* rule, const SgdTensor<S>* tensors, int64_t count) {
  return kernels::sgd_step(*rule, tensors, count, machine);
}
int adam_step(const AdamRule<T>* rule, const AdamTensor<S>* tensors, int64_t count) {
  return kernels::adam_step(*rule, tensors, count, machine);
}
#if !defined(STORAGE_OF_16_BITS)  // of TrainStep, whose parameters are no such
int recorded_sgd_step(const SgdRule<T>* rule, const SgdTensor<S>* tensors, int64_t count) {
  return kernels::sgd_step(rule, tensors, count, machine);
}
int recorded_adam_step(const AdamNumbers<T>* numbers, const AdamTensor<S>* tensors, int64_t count) {
  return kernels::adam_step(numbers, tensors, count, machine);
}
#endif
int begin_graph(const GraphArguments* p) { return kernels::begin_graph(*p, machine); }
int end_graph(const uint32_t* result, int64_t count, uint32_t* const* to) {
  return kernels::end_graph(result, static_cast<int>(count), to, machine);
}
int64_t gradient_norm_workspace(const GradTensor<S>* tensors, int64_t count) {
  return kernels::gradient_norm_workspace(tensors, count);
}
int gradient_norm(const GradTensor<S>* tensors, int64_t count, T* norm, T* workspace) {
  return kernels::gradient_norm(tensors, count, norm, workspace, machine);
}
int clip_gradients(const GradTensor<S>* tensors, int64_t count, double max_norm, const T* norm) {
  return kernels::clip_gradients(tensors, count, static_cast<T>(max_norm), norm, machine);
}

#if defined(STORAGE_IS_FLOAT)
int64_t train_steps_workspace(const TrainSteps* p, int64_t rows) { return kernels::train_steps_workspace(*p, rows); }
// By so many blocks, or as many as the work is worth.
int train_steps(TrainSteps* p, int64_t rows, int64_t blocks, float* workspace) {
  if (steps::plan(*p, rows, {machine.shared_bytes, kernels::LARGEST_CLUSTER}, static_cast<int>(blocks)))
    return cudaErrorInvalidConfiguration;
  return kernels::train_steps(*p, rows, workspace, machine);
}
#endif

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
int missing_wait(const int* x, int* y) { return kernels::launch(missing_wait_kernel, 1, 32, 0, machine, x, y); }

int cluster(int size, int fault, int* y) {
  constexpr int (*with_fault[])(int, int*) = {launch_cluster<0>, launch_cluster<1>, launch_cluster<2>,
                                              launch_cluster<3>, launch_cluster<4>, launch_cluster<5>,
                                              launch_cluster<6>};
  return with_fault[fault](size, y);
}

void emulator_leave_out(int barrier) { simt::left_out = barrier; }
void emulator_reverse(int on) { simt::reversed = on; }
void emulator_record(int on) {
  simt::recording = on;
  simt::recorded.clear();
}
const char* emulator_error() { return simt::error.c_str(); }
const char* launched_kernels() {  // a line for each: its name and how often it was launched
  static std::string text;
  text.clear();
  for (const auto& [name, count] : simt::launched) text += name + " " + std::to_string(count) + "\n";
  return text.c_str();
}
int recorded_launches() { return static_cast<int>(simt::recorded.size()); }
const char* recorded_kernel(int i) { return simt::recorded[i].kernel.c_str(); }
void recorded_shape(int i, int64_t* shape) {  // grid, block, bytes of shared memory, blocks of a cluster
  const simt::Launch& l = simt::recorded[i];
  const int64_t all[] = {l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, int64_t(l.shared_bytes),
                         l.cluster};
  for (int d = 0; d < 8; d++) shape[d] = all[d];
}
int recorded_arguments(int i) { return static_cast<int>(simt::recorded[i].arguments.size()); }
const char* recorded_argument(int i, int j, int64_t* bytes) {
  *bytes = static_cast<int64_t>(simt::recorded[i].arguments[j].size());
  return simt::recorded[i].arguments[j].data();
}
#endif
}
