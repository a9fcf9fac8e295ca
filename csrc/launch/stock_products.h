// Products outside the float32 contract that the stock operator computes faster, by measurement.
#pragma once

#include <ATen/core/Tensor.h>

namespace pytorch_ext {

// Whether a product of that many multiplications of CPU tensors is for the stock operator. Measured on an EPYC with
// AVX-512 and its instructions for bfloat16, torch 2.13, one thread, as stock's time over ours:
//
//   bfloat16   64x10x128 4.0, 1x128x784 3.4, 64x128x784 0.65, 256x1024x1024 0.43, 512x512x512 0.41
//   float16    1x128x784 1.1, 64x128x784 7.9, 512x512x512 9.3
//   float64    1x128x784 1.3, 64x128x784 2.1, 512x512x512 1.9
//
// Without those instructions nothing was measured, and our kernel runs.
bool stock_product_is_faster(at::ScalarType dtype, int64_t multiplications);

}  // namespace pytorch_ext
