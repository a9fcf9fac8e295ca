#include "stock_products.h"

#include <ATen/Context.h>

namespace pytorch_ext {
namespace {

bool has_bfloat16_instructions() {
#if defined(__x86_64__)
  static const bool found = __builtin_cpu_supports("avx512bf16");
  return found;
#else
  return false;
#endif
}

constexpr int64_t FROM_MULTIPLICATIONS = int64_t(1) << 20;

}  // namespace

bool stock_product_is_faster(at::ScalarType dtype, int64_t multiplications) {
  return dtype == at::kBFloat16 && multiplications >= FROM_MULTIPLICATIONS && has_bfloat16_instructions() &&
         at::globalContext().userEnabledMkldnn();
}

}  // namespace pytorch_ext
