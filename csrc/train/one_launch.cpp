#include "one_launch.h"

#include <algorithm>

namespace pytorch_ext::train {

bool OneLaunch::plan(const std::vector<int64_t>& lengths, const Tensor& target, bool has_sums) {
  reason_ = find_reason(lengths, target, has_sums);
  return reason_.empty();
}

// The one rule, in words: docs/train_step.md.
std::string OneLaunch::find_reason([[maybe_unused]] const std::vector<int64_t>& lengths,
                                   [[maybe_unused]] const Tensor& target, [[maybe_unused]] bool has_sums) {
  const Tensor& like = chain_.like();
  if (!like.is_cuda()) return "expected parameters on a CUDA device";
#if defined(PYTORCH_EXT_CUDA)
  if (exact_blocks < 0) return "it is switched off";
  if (like.scalar_type() != at::kFloat) return "expected float32 parameters";
  if (has_sums || update_.clips()) return "expected neither accumulated nor clipped gradients";
  if (pass_.is_captured()) return "a graph is captured";
  if (!pass_.reads(target)) return "expected a contiguous target of the dtype that the loss's kernels read";
  const auto [least, most] = std::minmax_element(lengths.begin(), lengths.end());
  if (*least == 0) return "expected batches that are not empty";
  most_rows_ = *most;

  steps_ = {};
  std::string reason = pass_.add_to(steps_, lengths.front());
  if (!reason.empty()) return reason;
  std::vector<std::pair<const Tensor*, StepParameter*>> parameters;
  size_t slot = 0;
  for (int l = 0; l < steps_.layers; l++)
    for (StepParameter* x : {&steps_.layer[l].weight, &steps_.layer[l].bias})
      if (x->value) parameters.emplace_back(&chain_.slots()[slot++]->weight.value, x);
  steps_.steps = static_cast<int>(lengths.size());
  std::copy(lengths.begin(), lengths.end(), steps_.rows);
  reason = update_.add_to(steps_, steps_.steps, [&](const Tensor& p) {
    return std::find_if(parameters.begin(), parameters.end(), [&](auto& x) { return x.first->is_same(p); })->second;
  });
  if (!reason.empty()) return reason;
  auto is_trained = [&](int l) { return steps_.layer[l].weight.is_trained() || steps_.layer[l].bias.is_trained(); };
  while (steps_.first_trained < steps_.layers && !is_trained(steps_.first_trained)) steps_.first_trained++;
  if (steps_.first_trained == steps_.layers) return "there is nothing to train";
  CurrentQueue queue(like);
  const char* misfit = steps::plan(steps_, most_rows_, cuda::train_steps_room(queue), exact_blocks);
  return misfit ? misfit : "";
#else
  return "the native part was built without CUDA";
#endif
}

void OneLaunch::run([[maybe_unused]] const Tensor& inputs, [[maybe_unused]] const Tensor& targets,
                    [[maybe_unused]] const Tensor& losses) {
#if defined(PYTORCH_EXT_CUDA)
  steps_.inputs = data<float>(inputs);
  if (steps_.of_classes)
    steps_.classes.indices = targets.const_data_ptr<int64_t>();
  else
    steps_.elementwise.target = data<float>(targets);
  steps_.losses = losses.mutable_data_ptr<float>();
  pass_.release();
  CurrentQueue queue(chain_.like());
  cuda::train_steps(steps_, most_rows_, queue);
  update_.stepped(steps_.steps);
#endif
}

}  // namespace pytorch_ext::train
