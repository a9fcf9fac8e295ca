// softmax and log_softmax: memory and checks; the arithmetic is in the kernel.
#include "../cpu/softmax.h"

#include "covers.h"
#include "kernel.h"
#include "row_shape.h"

namespace pytorch_ext {

bool covers_softmax(const Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype) {
  const int64_t dims = std::max<int64_t>(input.dim(), 1);
  return has_kernels(input) && is_kernel_dtype(dtype.value_or(input.scalar_type())) && !input.is_complex() &&
         dim >= -dims && dim < dims;
}

namespace {

Tensor softmax_forward(const Tensor& input, int64_t dim, bool logarithm) {
  const RowShape shape(input.sizes(), dim);
  Tensor output = empty(input.sizes(), input);
  if (!output.numel()) return output;
  // Rows may lie apart, as those of a slice do.
  const bool as_it_is = input.dim() == 2 && shape.inner == 1 && shape.outer == input.size(0) && input.stride(1) == 1;
  const Tensor x = as_it_is ? input : input.contiguous();
  WITH_STORAGE_TYPE("softmax", input.scalar_type(), [&] {
    Softmax<S> p{
        shape.outer, shape.columns, shape.inner, data<S>(x), shape.columns * shape.inner, mutable_data<S>(output),
        logarithm};
    if (as_it_is) p.x_outer = input.stride(0);
    RUN_KERNEL(input, softmax<S>)(p);
  });
  return output;
}

Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, bool logarithm) {
  check_same("softmax_backward", "grad", grad, output);
  TORCH_CHECK(grad.sizes() == output.sizes(), "softmax_backward: expected grad ", output.sizes(), ", got ",
              grad.sizes());
  const RowShape shape(output.sizes(), dim);
  Tensor dinput = empty(output.sizes(), output);
  if (!dinput.numel()) return dinput;
  const Tensor g = grad.contiguous(), y = output.contiguous();
  WITH_STORAGE_TYPE("softmax_backward", output.scalar_type(), [&] {
    RUN_KERNEL(output, softmax_gradient<S>)
    (SoftmaxGradient<S>{shape.outer, shape.columns, shape.inner, data<S>(g), data<S>(y), mutable_data<S>(dinput),
                        logarithm});
  });
  return dinput;
}

}  // namespace

KERNEL_LIBRARY(m) {
  m.impl("softmax_forward", &softmax_forward);
  m.impl("softmax_backward", &softmax_backward);
}

}  // namespace pytorch_ext
