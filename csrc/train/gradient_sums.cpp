#include "gradient_sums.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

namespace pytorch_ext::train {

void GradientSums::move() {
  for (Sum& sum : sums_) {
    const bool stays = sum.value.defined() && sum.value.options().type_equal(chain_.like().options());
    if (!stays) sum = Sum();
    if (stays && !sum.value.is_cpu()) sum.value.record_stream(*current_stream(sum.value));
  }
}

void GradientSums::add_to(LaunchKey& key) const {
  key.push_back(completes_next());
  if (!are_needed()) return;
  for (size_t i = 0; i < sums_.size(); i++) {
    const Tensor& sum = sums_[i].value;
    const int64_t address = sum.defined() ? reinterpret_cast<int64_t>(sum.const_data_ptr()) : 0;
    key.insert(key.end(), {address, has(i), chain_.slots()[i]->trains});
  }
}

void GradientSums::launch() {
  if (!are_needed()) return;
  at::NoGradGuard no_grad;
  sums_.resize(chain_.slots().size());
  for (size_t i = 0; i < sums_.size(); i++) {
    const Slot& slot = *chain_.slots()[i];
    const Tensor& gradient = slot.weight.gradient;
    Tensor& sum = sums_[i].value;
    if (slot.trains && gradient.defined()) {
      if (!sum.defined()) sum = at::empty_like(gradient);
      has(i) ? sum.add_(gradient) : sum.copy_(gradient);
    }
    if (completes_next() && gradient.defined()) gradient.copy_(sum);
  }
}

void GradientSums::launched() {
  for (size_t i = 0; i < sums_.size(); i++) {
    Slot& slot = *chain_.slots()[i];
    sums_[i].has_begun = slot.weight.gradient.defined();
    if (completes_next() && sums_[i].has_begun) slot.trains = true;  // what was frozen meanwhile is to be noticed again
  }
  batches_++;
}

}  // namespace pytorch_ext::train
