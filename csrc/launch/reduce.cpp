#include "reduce.h"

#include <ATen/ExpandUtils.h>

#include "../cpu/reduce.h"
#include "kernel.h"

namespace pytorch_ext {
namespace {

// Neighbouring dimensions that one stride walks through.
struct Run {
  int64_t size, stride;
};

// The dimensions that are summed, or those that stay, as few runs as their strides allow. Size 1 is neither.
std::vector<Run> runs(const Tensor& t, const std::vector<bool>& summed, bool wanted) {
  std::vector<Run> found;
  for (int64_t d = 0; d < t.dim(); d++) {
    if (t.size(d) == 1 || summed[d] != wanted) continue;
    if (!found.empty() && found.back().stride == t.stride(d) * t.size(d))
      found.back() = {found.back().size * t.size(d), t.stride(d)};
    else
      found.push_back({t.size(d), t.stride(d)});
  }
  return found;
}

Tensor summed_first(const Tensor& t, const std::vector<bool>& summed) {
  std::vector<int64_t> order;
  for (bool wanted : {true, false})
    for (int64_t d = 0; d < t.dim(); d++)
      if (summed[d] == wanted) order.push_back(d);
  return t.permute(order).contiguous();
}

}  // namespace

Tensor sum_to_size(const Tensor& t, at::IntArrayRef sizes) {
  if (t.sizes() == sizes) return t;
  TORCH_CHECK(at::is_expandable_to(sizes, t.sizes()), "sum_to_size: expected sizes that broadcast to ", t.sizes(),
              ", got ", sizes);
  Tensor output = empty(sizes, t);
  if (t.numel() == 0) return output.zero_();
  const int64_t leading = t.dim() - static_cast<int64_t>(sizes.size());
  std::vector<bool> summed(t.dim());
  for (int64_t d = 0; d < t.dim(); d++) summed[d] = d < leading || sizes[d - leading] != t.size(d);

  Tensor x = t;
  auto rows = runs(t, summed, true), kept = runs(t, summed, false);
  if (rows.empty()) rows.push_back({1, 1});
  if (kept.empty()) kept.push_back({1, 1});
  if (rows.size() > 1 || kept.size() > 2 || (kept.back().stride != 1 && rows[0].stride != 1)) {
    x = summed_first(t, summed);
    rows = {{t.numel() / output.numel(), output.numel()}};
    kept = {{output.numel(), 1}};
  }
  const Run outer = kept.size() == 2 ? kept[0] : Run{1, 0}, inner = kept.back();
  WITH_STORAGE_TYPE("sum_to_size", t.scalar_type(), [&] {
    RUN_KERNEL(t, sum_slices<S>)
    (SliceSum<S>{outer.size, rows[0].size, inner.size, data<S>(x), outer.stride, rows[0].stride, inner.stride,
                 mutable_data<S>(output)});
  });
  return output;
}

}  // namespace pytorch_ext
