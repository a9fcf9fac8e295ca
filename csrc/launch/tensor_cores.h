// Which kernel computes a product: the contract's or, for 16 bits on a device that has them, the tensor cores'. What
// neither does is the stock operator's.
#pragma once

#include "../cuda/tensor_cores.h"
#include "covers.h"
#include "kernel.h"
#include "stock_products.h"

namespace pytorch_ext {

// Whether the environment asks for our own products of 16 bits (PYTORCH_EXT_TENSOR_CORES=1) and the device has them.
bool serves_tensor_cores(const Tensor& on);

// Whether a product with such an operand, of so many multiplications, is left to the stock operator, as all of its kind
// are or as a table of measurements says.
bool is_stock_product(const Tensor& operand, int64_t multiplications);

// Whether run_product() takes the product; an output that is not there yet counts as one that fits.
template <class S>
bool covers_product(const Tensor& on, [[maybe_unused]] const TensorCoreProduct<S>& p) {
  if (!on.is_cuda()) return !is_stock_product(on, p.batch * p.M * p.N * p.K);
#if defined(PYTORCH_EXT_CUDA)
  if constexpr (sizeof(S) == 2) return serves_tensor_cores(on) && cuda::covers(p);
#endif
  return true;
}

template <class S>
void run_product(const Tensor& on, const TensorCoreProduct<S>& p) {
#if defined(PYTORCH_EXT_CUDA)
  if constexpr (sizeof(S) == 2)
    if (on.is_cuda()) {
      CurrentQueue queue(on);
      return cuda::tensor_core_product(p, queue);
    }
#endif
  RUN_KERNEL(on, product<S>)(p);
}

}  // namespace pytorch_ext
