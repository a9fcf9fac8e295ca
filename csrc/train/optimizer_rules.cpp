// What training steps in one launch get of an optimiser's groups.
#include <algorithm>

#include "../launch/optimizer_groups.h"
#include "../numerics/coefficients.h"

namespace pytorch_ext {

bool SgdGroup::add_to(TrainSteps& p, int, const ParameterOf& parameter_of) const {
  if (found_.empty()) return true;
  if (p.rules == TrainSteps::most_rules) return false;
  p.is_adam = false;
  p.sgd[p.rules] = sgd_rule<float>(lr_, momentum_, dampening_, weight_decay_, nesterov_, maximize_);
  for (size_t i = 0; i < found_.size(); i++) {
    StepParameter& x = *parameter_of(found_[i].value);
    x.rule = p.rules;
    x.state[0] = mutable_data<float>(buffers_[i]);
    x.first = first_[i];
  }
  p.rules++;
  return true;
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

// A rule for each number of steps that the group's parameters have taken.
bool AdamGroup::add_to(TrainSteps& p, int steps, const ParameterOf& parameter_of) const {
  std::vector<int64_t> taken;
  const int first = p.rules;
  p.is_adam = true;
  for (size_t i = 0; i < found_.size(); i++) {
    const State& s = states_[i];
    const int64_t t = count_ahead(s.step, 0);
    const auto at = std::find(taken.begin(), taken.end(), t);
    const int rule = first + static_cast<int>(at - taken.begin());
    if (at == taken.end()) {
      if (rule == TrainSteps::most_rules) return false;
      taken.push_back(t);
      p.adam[rule] = adam_rule<float>(lr_, beta1_, beta2_, eps_, weight_decay_, decoupled_, amsgrad_, maximize_);
      for (int step = 0; step < steps; step++) {
        const AdamStep factors = adam_step_factors(lr_, beta1_, beta2_, count_ahead(s.step, step));
        p.numbers[step][rule] = {static_cast<float>(factors.negative_step_size), static_cast<float>(factors.scale)};
      }
    }
    StepParameter& x = *parameter_of(found_[i].value);
    x.rule = rule;
    x.state[0] = mutable_data<float>(s.exp_avg), x.state[1] = mutable_data<float>(s.exp_avg_sq);
    x.state[2] = mutable_data<float>(s.max_exp_avg_sq);
  }
  p.rules = first + static_cast<int>(taken.size());
  return true;
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
