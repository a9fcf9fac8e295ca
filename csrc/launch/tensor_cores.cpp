#include "tensor_cores.h"

#include <cstdlib>
#include <string_view>

namespace pytorch_ext {

bool serves_tensor_cores([[maybe_unused]] const Tensor& on) {
#if defined(PYTORCH_EXT_CUDA)
  static const bool asked_for = [] {
    const char* value = std::getenv("PYTORCH_EXT_TENSOR_CORES");
    return value && std::string_view(value) == "1";
  }();
  return asked_for && on.is_cuda() && cuda::has_tensor_cores(on.device().index());
#else
  return false;
#endif
}

bool has_stock_products(const Tensor& t) { return !t.is_cpu() && t.element_size() == 2 && !serves_tensor_cores(t); }

bool is_stock_product(const Tensor& t, int64_t multiplications) {
  return has_stock_products(t) || (t.is_cpu() && stock_product_is_faster(t.scalar_type(), multiplications));
}

}  // namespace pytorch_ext
