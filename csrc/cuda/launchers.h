// The launchers of csrc/cuda as the launch code calls them: on the arguments of the CPU kernels of the same names, and
// a Queue. No CUDA header is needed to include this.
#pragma once

#include "../cpu/cross_entropy.h"
#include "../cpu/dropout.h"
#include "../cpu/elementwise_loss.h"
#include "../cpu/linear.h"
#include "../cpu/optimizers.h"
#include "../cpu/product.h"
#include "../cpu/reduce.h"
#include "../cpu/scaled_dot_product_attention.h"
#include "../cpu/softmax.h"
#include "tensor_cores.h"
#include "train_steps.h"

namespace pytorch_ext::cuda {

// Where a launcher launches: a stream of a device. Pointers in the arguments are to this device's memory.
class Queue {
 public:
  virtual ~Queue() = default;
  virtual int device() const = 0;
  virtual void* stream() const = 0;
  // Memory of the device that stays reserved until what this queue launched has run.
  virtual void* workspace(int64_t bytes) = 0;
  // Raises: a launch of `op` gave this error.
  [[noreturn]] virtual void fail(const char* op, int error, const char* message) = 0;
};

// The number, from 1 on, of the graph that work sent to the queue is recorded for, so that nothing may wait for it; 0
// where it is not recorded.
int64_t capture_number(Queue& queue);

void batch_offsets(const BatchOffsets& p, Queue& queue);

template <class S>
void apply_function(Function f, int64_t n, const S* x, S* y, Queue& queue);
template <class S>
void activation(Activation kind, int64_t n, const S* x, S* y, Queue& queue);
template <class S>
void activation_gradient(Activation kind, int64_t n, const S* grad, const S* saved, S* dx, Queue& queue);
template <class S>
void product(const Product<S>& p, Queue& queue);  // float and double
// 16-bit products on the tensor cores: whether the device has them and they are compiled, and which shapes they cover.
bool has_tensor_cores(int device);
template <class S>
bool covers(const TensorCoreProduct<S>& p);
template <class S>
void tensor_core_product(const TensorCoreProduct<S>& p, Queue& queue);
template <class S>
void linear_gradient(const LinearGradient<S>& p, Queue& queue);
template <class S>
void softmax(const Softmax<S>& p, Queue& queue);
template <class S>
void softmax_gradient(const SoftmaxGradient<S>& p, Queue& queue);
template <class S>
void scaled_dot_product_attention(const AttentionOutput<S>& p, Queue& queue);  // float and double
template <class S>
void scaled_dot_product_attention_gradient(const AttentionGradient<S>& p, Queue& queue);
template <class S>
void dropout(const Dropout<S>& p, Queue& queue);
template <class S>
void sum_slices(const SliceSum<S>& p, Queue& queue);
template <class S>
void dot_product(const DotProduct<S>& p, Queue& queue);
template <class S>
bool elementwise_loss(const ElementwiseLossArrays<S>& p,
                      Queue& queue);  // true; what is no probability stops the device
template <class S>
void cross_entropy(const ClassificationLoss<S>& p, Queue& queue);
template <class S>
void nll_loss(const ClassificationLoss<S>& p, Queue& queue);

// The list of tensors lies in host memory, the norm in the device's.
template <class S>
void sgd_step(const SgdRule<compute_t<S>>& rule, const SgdTensor<S>* tensors, int64_t count, Queue& queue);
template <class S>
void adam_step(const AdamRule<compute_t<S>>& rule, const AdamTensor<S>* tensors, int64_t count, Queue& queue);
// Training steps of a plan, for batches of at most so many rows, and what their device gives them.
steps::Room train_steps_room(Queue& queue);
void train_steps(const TrainSteps& p, int64_t rows, Queue& queue);
template <class S>
void gradient_norm(const GradTensor<S>* tensors, int64_t count, compute_t<S>* norm, Queue& queue);
template <class S>
void clip_gradients(const GradTensor<S>* tensors, int64_t count, compute_t<S> max_norm, const compute_t<S>* norm,
                    Queue& queue);

}  // namespace pytorch_ext::cuda
