#include "update.h"

#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "../launch/optimizers.h"

namespace pytorch_ext::train {

namespace py = pybind11;

Update::Update(py::object optimizer, std::string rule, std::optional<double> max_norm)
    : optimizer_(std::move(optimizer)), rule_(std::move(rule)), max_norm_(max_norm) {
  attributes_ = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer_.ptr(), nullptr));
  if (!attributes_) throw py::error_already_set();
}

bool Update::is_observed() const { return pytorch_ext::is_observed(attributes_.ptr()); }

bool Update::wants(const Tensor& parameter) const {
  if (max_norm_) return true;
  for (py::handle group : py::reinterpret_borrow<py::list>(optimizer_.attr("param_groups")))
    for (py::handle p : py::reinterpret_borrow<py::list>(group["params"]))
      if (THPVariable_Check(p.ptr()) && THPVariable_Unpack(p.ptr()).is_same(parameter)) return true;
  return false;
}

void Update::check_mode() {
  TORCH_CHECK(!c10::InferenceMode::is_enabled(), "TrainStep: expected no inference mode where memory is made, got it");
}

void Update::take(std::vector<const Weight*> weights, std::vector<const Weight*> unwanted) {
  weights_ = std::move(weights), unwanted_ = std::move(unwanted);
  reader_.reset();
}

bool Update::misses_gradients() const {
  return std::any_of(unwanted_.begin(), unwanted_.end(), [&](auto* weight) { return wants(weight->value); });
}

void Update::read() {
  static PyObject* const param_groups = PyUnicode_InternFromString("param_groups");
  static PyObject* const state = PyUnicode_InternFromString("state");
  check_mode();
  groups_.clear();
  reader_ = std::make_unique<GroupReader>(GroupReader{nullptr, Lookups(true)});
  reader_->obeys_hints = false;
  reader_->unwritten = unwritten_;
  reader_->gradient_of = [this](const Tensor& p) {
    for (const Weight* weight : weights_)
      if (weight->value.is_same(p)) return weight->gradient;
    return Tensor();
  };
  PyObject* groups = reader_->lookups.find(attributes_.ptr(), param_groups);
  reader_->states = reader_->lookups.find(attributes_.ptr(), state);
  TORCH_CHECK(groups && PyList_Check(groups) && reader_->states, "TrainStep: expected an optimiser with param_groups");
  reader_->lookups.items(groups);
  for (py::handle group : py::reinterpret_borrow<py::list>(groups)) {
    std::unique_ptr<OptimizerGroup> read;
    if (rule_ == "sgd")
      read = std::make_unique<SgdGroup>();
    else
      read = std::make_unique<AdamGroup>();
    TORCH_CHECK(read->read(group.ptr(), *reader_),
                "TrainStep: expected options and state that the optimiser's kernels take (numbers, no capturable, no "
                "differentiable, state as the parameters; in a graph capture SGD), got others");
    groups_.push_back(std::move(read));
  }
}

void Update::refresh() {
  const bool is_recorded = !weights_.empty() && is_capturing(weights_[0]->value);  // then not every rule may step
  const bool as_before = reader_ && !is_recorded && reader_->lookups.unchanged() &&
                         std::all_of(groups_.begin(), groups_.end(), [](auto& group) { return group->fits(); });
  if (!as_before) read();
}

void Update::undo() {
  if (reader_) reader_->undo();
  reader_.reset();
  unwritten_->clear();
}

std::string Update::add_to(TrainSteps& p, int steps, const OptimizerGroup::ParameterOf& parameter_of) {
  for (const auto& group : groups_)
    if (!group->add_to(p, steps, parameter_of))
      return "expected parameters of at most " + std::to_string(TrainSteps::most_rules) +
             " kinds of options and numbers of steps, got more";
  return "";
}

void Update::stepped(int64_t steps) {
  for (const auto& group : groups_) group->stepped(steps);
}

void Update::clip() {
  if (!max_norm_ || weights_.empty()) return;
  std::vector<Tensor> gradients;
  for (const Weight* weight : weights_) gradients.push_back(weight->gradient);
  norm_.get(1, gradients[0]);
  clip_gradients(gradients, *max_norm_, /*error_if_nonfinite=*/false, norm_.view({}));
}

void Update::step() {
  clip();
  for (const auto& group : groups_) group->step();
}

bool Update::add_to(GraphArguments& arguments, LaunchKey& key) {
  key.push_back(norm_.address());
  return std::all_of(groups_.begin(), groups_.end(), [&](auto& group) { return group->add_to(arguments, key); });
}

void Update::record() {
  clip();
  for (const auto& group : groups_) group->record();
}

void Update::tell_schedulers() {
  if (reader_ && !reader_->made.empty()) reader_->made.clear();
  static PyObject* const name = PyUnicode_InternFromString("_opt_called");
  if (PyDict_SetItem(attributes_.ptr(), name, Py_True)) throw py::error_already_set();
}

}  // namespace pytorch_ext::train
