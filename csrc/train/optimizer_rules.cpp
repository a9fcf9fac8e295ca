// What training steps in one launch, and graphs, get of an optimiser's groups.
#include <algorithm>

#include "../launch/optimizer_groups.h"

#if defined(PYTORCH_EXT_CUDA)
#include "../cuda/graph.h"
#endif

namespace pytorch_ext {

// Runs the body with S the dtype of the parameters of a chain.
#define WITH_CHAIN_TYPE(like, ...)             \
  do {                                         \
    if ((like).scalar_type() == at::kDouble) { \
      using S = double;                        \
      __VA_ARGS__();                           \
    } else {                                   \
      using S = float;                         \
      __VA_ARGS__();                           \
    }                                          \
  } while (false)

namespace {

int64_t address(const Tensor& t) { return t.defined() ? reinterpret_cast<int64_t>(t.const_data_ptr()) : 0; }

}  // namespace

bool SgdGroup::add_to(TrainSteps& p, int, const ParameterOf& parameter_of) const {
  if (found_.empty()) return true;
  if (p.rules == TrainSteps::most_rules) return false;
  p.is_adam = false;
  p.sgd[p.rules] = rule<float>();
  for (size_t i = 0; i < found_.size(); i++) {
    StepParameter& x = *parameter_of(found_[i].value);
    x.rule = p.rules;
    x.state[0] = mutable_data<float>(buffers_[i]);
    x.first = first_[i];
  }
  p.rules++;
  return true;
}

bool SgdGroup::add_to(GraphArguments& arguments, std::vector<int64_t>& key) {
  key.push_back(static_cast<int64_t>(found_.size()));
  if (found_.empty()) return true;
  for (size_t i = 0; i < found_.size(); i++)
    key.insert(key.end(), {address(found_[i].value), address(found_[i].grad), address(buffers_[i]), first_[i]});
  WITH_CHAIN_TYPE(found_[0].value, [&] { recorded_rule_ = arguments.add(rule<S>()); });
  return recorded_rule_;
}

void SgdGroup::record() const {
#if defined(PYTORCH_EXT_CUDA)
  if (found_.empty()) return;
  WITH_CHAIN_TYPE(found_[0].value, [&] {
    std::vector<SgdTensor<S>> tensors;
    for (size_t i = 0; i < found_.size(); i++) tensors.push_back(tensor<S>(i));
    CurrentQueue queue(found_[0].value);
    cuda::recorded_sgd_step(static_cast<const SgdRule<S>*>(recorded_rule_), tensors.data(),
                            static_cast<int64_t>(tensors.size()), queue);
  });
#endif
}

void SgdGroup::stepped(int64_t) {
  for (size_t i = 0; i < found_.size(); i++) {
    written(found_[i].value);
    written(buffers_[i]);
  }
  have_written();
}

namespace {

// What count_step() gives `ahead` calls from now, with the next one 0.
int64_t count_ahead(const Tensor& step, int ahead) {
  if (step.scalar_type() != at::kFloat) return static_cast<int64_t>(*step.const_data_ptr<double>()) + ahead + 1;
  float count = *step.const_data_ptr<float>();
  for (int i = 0; i <= ahead; i++) count += 1;
  return static_cast<int64_t>(count);
}

}  // namespace

std::vector<int> AdamGroup::next_counts(std::vector<int64_t>& counts) const {
  std::vector<int> count_of;
  for (const State& s : states_) {
    const int64_t count = count_ahead(s.step, 0);
    const auto at = std::find(counts.begin(), counts.end(), count);
    count_of.push_back(static_cast<int>(at - counts.begin()));
    if (at == counts.end()) counts.push_back(count);
  }
  return count_of;
}

// A rule for each number of steps that the group's parameters have taken.
bool AdamGroup::add_to(TrainSteps& p, int steps, const ParameterOf& parameter_of) const {
  std::vector<int64_t> counts;
  const std::vector<int> count_of = next_counts(counts);
  const int first = p.rules;
  if (first + static_cast<int>(counts.size()) > TrainSteps::most_rules) return false;
  p.is_adam = true;
  for (size_t i = 0; i < found_.size(); i++) {
    const State& s = states_[i];
    const int number = first + count_of[i];
    if (number == p.rules) {  // the first of its count
      p.adam[p.rules++] = rule<float>();
      for (int step = 0; step < steps; step++) {
        const AdamStep factors = adam_step_factors(lr_, beta1_, beta2_, count_ahead(s.step, step));
        p.numbers[step][number] = {static_cast<float>(factors.negative_step_size), static_cast<float>(factors.scale)};
      }
    }
    StepParameter& x = *parameter_of(found_[i].value);
    x.rule = number;
    x.state[0] = mutable_data<float>(s.exp_avg), x.state[1] = mutable_data<float>(s.exp_avg_sq);
    x.state[2] = mutable_data<float>(s.max_exp_avg_sq);
  }
  return true;
}

// Launches by parameters that have taken equally many steps.
bool AdamGroup::add_to(GraphArguments& arguments, std::vector<int64_t>& key) {
  std::vector<int64_t> counts;
  count_of_ = next_counts(counts);
  recorded_numbers_.clear();
  key.push_back(static_cast<int64_t>(found_.size()));
  for (size_t i = 0; i < found_.size(); i++) {
    const Parameter& p = found_[i];
    const State& s = states_[i];
    for (const Tensor* t : {&p.value, &p.grad, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq})
      key.push_back(address(*t));
    key.push_back(count_of_[i]);
  }
  for (int64_t count : counts) {
    const AdamStep factors = adam_step_factors(lr_, beta1_, beta2_, count);
    WITH_CHAIN_TYPE(found_[0].value, [&] {
      const AdamNumbers<S> numbers{rule<S>(), S(factors.negative_step_size), S(factors.scale)};
      recorded_numbers_.push_back(arguments.add(numbers));
    });
    if (!recorded_numbers_.back()) return false;
  }
  return true;
}

void AdamGroup::record() const {
#if defined(PYTORCH_EXT_CUDA)
  for (size_t part = 0; part < recorded_numbers_.size(); part++)
    WITH_CHAIN_TYPE(found_[0].value, [&] {
      std::vector<AdamTensor<S>> tensors;
      for (size_t i = 0; i < found_.size(); i++)
        if (count_of_[i] == static_cast<int>(part)) tensors.push_back(tensor<S>(i, AdamStep{}));
      CurrentQueue queue(found_[0].value);
      cuda::recorded_adam_step(static_cast<const AdamNumbers<S>*>(recorded_numbers_[part]), tensors.data(),
                               static_cast<int64_t>(tensors.size()), queue);
    });
#endif
}

void AdamGroup::stepped(int64_t steps) {
  for (size_t i = 0; i < found_.size(); i++) {
    const State& s = states_[i];
    for (int64_t step = 0; step < steps; step++) count_step(s.step);
    const Tensor& value = found_[i].value;
    for (const Tensor* t : {&value, &s.exp_avg, &s.exp_avg_sq, &s.max_exp_avg_sq}) written(*t);
  }
}

}  // namespace pytorch_ext
