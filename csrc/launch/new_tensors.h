// New tensors without values. Large ones on the CPU lie in huge pages, which are kept for the next one of about that
// size: the first touch of a page costs the operating system far more than the arithmetic on what lies in it, and
// malloc hands blocks above 32 MB, and now and then smaller ones, back each time.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace pytorch_ext {

// Contiguous, on the device of `like` and with its dtype, or another one.
at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like, std::optional<at::ScalarType> dtype = std::nullopt);

// As torch makes a result of `like`: with its strides, or where those leave gaps, in their order.
at::Tensor new_like(const at::Tensor& like);

// Gives back what is kept.
void free_kept_memory();

}  // namespace pytorch_ext
