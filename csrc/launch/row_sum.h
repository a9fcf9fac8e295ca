// A sum of rows that come in chunks, in the contract's order.
#pragma once

#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "../numerics/order.h"
#include "reduce.h"

namespace pytorch_ext {

// The sum of rows by the sum rule, in which row i goes to lane i mod 64 of its segment; the rows come in chunks.
class RowSum {
  static constexpr int64_t LANES = baseline::SUM_LANES, SEGMENT = baseline::SUM_SEGMENT;

 public:
  // Chunks but the last are whole multiples of the lanes.
  void add(const at::Tensor& chunk) {
    if (!lanes_.defined()) lanes_ = at::zeros({LANES, chunk.size(1)}, chunk.options());
    for (int64_t begin = 0; begin < chunk.size(0); begin += LANES) {
      const int64_t count = std::min(LANES, chunk.size(0) - begin);
      lanes_.narrow(0, 0, count).add_(chunk.narrow(0, begin, count));
      rows_ += count;
      if (rows_ % SEGMENT == 0) close();
    }
  }
  at::Tensor result(at::IntArrayRef columns) {
    if (!lanes_.defined()) return at::Tensor();
    if (rows_ % SEGMENT || segments_.empty()) close();
    return segments_.size() == 1 ? segments_[0] : sum_to_size(at::stack(segments_), columns);
  }

 private:
  void close() {  // a row of its own for each lane
    segments_.push_back(sum_to_size(lanes_, {lanes_.size(1)}));
    lanes_.zero_();
  }
  at::Tensor lanes_;
  std::vector<at::Tensor> segments_;
  int64_t rows_ = 0;
};

}  // namespace pytorch_ext
