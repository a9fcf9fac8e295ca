// Whole training steps of small models as one launch on a device.
#pragma once

#include <string>
#include <vector>

#include "pass.h"
#include "update.h"

namespace pytorch_ext::train {

class OneLaunch {
 public:
  // All outlive this.
  OneLaunch(Chain& chain, Pass& pass, Update& update) : chain_(chain), pass_(pass), update_(update) {}

  // Whether steps with batches of these lengths can be one launch; of the first one `target` was read by the pass.
  // `has_sums`: gradients are accumulated.
  bool plan(const std::vector<int64_t>& lengths, const Tensor& target, bool has_sums);
  // Takes the steps that were planned, with batches that lie one behind the other, and their losses into `losses`.
  void run(const Tensor& inputs, const Tensor& targets, const Tensor& losses);
  // Why the last steps were several launches; empty where they were one.
  const std::string& reason() const { return reason_; }
  // How many blocks ran the last steps.
  int blocks() const { return reason_.empty() ? steps_.cluster : 0; }

  // So many blocks whatever the work; 0: as many as that is worth; negative: never one launch. For tests.
  int exact_blocks = 0;

 private:
  std::string find_reason(const std::vector<int64_t>& lengths, const Tensor& target, bool has_sums);

  Chain& chain_;
  Pass& pass_;
  Update& update_;
  TrainSteps steps_{};
  int64_t most_rows_ = 0;
  std::string reason_ = "there was no step yet";
};

}  // namespace pytorch_ext::train
