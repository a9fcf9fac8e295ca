// What every launcher needs: storage types for torch's dtypes, checks, and new tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "../numerics/kinds.h"
#include "new_tensors.h"

namespace pytorch_ext {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool is_kernel_dtype(at::ScalarType t) {
  return t == at::kFloat || t == at::kDouble || t == at::kBFloat16 || t == at::kHalf;
}

// Runs the body with S the storage type of a dtype: WITH_STORAGE_TYPE("linear", x.scalar_type(), [&] { ... S ... }).
#define WITH_STORAGE_TYPE(op, dtype, ...)                                                          \
  do {                                                                                             \
    const at::ScalarType with_dtype = (dtype);                                                     \
    if (with_dtype == at::kFloat) {                                                                \
      using S = float;                                                                             \
      __VA_ARGS__();                                                                               \
    } else if (with_dtype == at::kDouble) {                                                        \
      using S = double;                                                                            \
      __VA_ARGS__();                                                                               \
    } else if (with_dtype == at::kBFloat16) {                                                      \
      using S = ::pytorch_ext::BFloat16;                                                           \
      __VA_ARGS__();                                                                               \
    } else if (with_dtype == at::kHalf) {                                                          \
      using S = ::pytorch_ext::Half;                                                               \
      __VA_ARGS__();                                                                               \
    } else {                                                                                       \
      TORCH_CHECK(false, op ": expected float32, float64, bfloat16 or float16, got ", with_dtype); \
    }                                                                                              \
  } while (false)

// A tensor's first element: what const_data_ptr() gives, by fewer calls; or where there is no memory, its error.
template <class S>
const S* data(const Tensor& t) {
  const c10::TensorImpl& impl = *t.unsafeGetTensorImpl();
  if (!impl.unsafe_storage()) return static_cast<const S*>(t.const_data_ptr());
  return static_cast<const S*>(impl.unsafe_storage().data()) + impl.storage_offset();
}
template <class S>
const S* data(const OptionalTensor& t) {
  return t ? data<S>(*t) : nullptr;
}
template <class S>
S* mutable_data(const Tensor& t) {
  if (!t.defined()) return nullptr;
  const c10::TensorImpl& impl = *t.unsafeGetTensorImpl();
  if (!impl.unsafe_storage()) return static_cast<S*>(t.mutable_data_ptr());
  return static_cast<S*>(impl.unsafe_storage().mutable_data()) + impl.storage_offset();
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& reference) {
  TORCH_CHECK(t.scalar_type() == reference.scalar_type() && t.device() == reference.device(), op, ": expected ", name,
              " of ", reference.scalar_type(), " on ", reference.device(), ", got ", t.scalar_type(), " on ",
              t.device());
}

}  // namespace pytorch_ext
