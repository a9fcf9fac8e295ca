// TrainStep: forward, loss, backward and update of a chain of layers in one call from Python.
#include "train_step.h"

#include <ATen/ops/empty.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <mutex>

#include "../eager.h"
#include "../launch/covers.h"
#include "chain.h"
#include "losses.h"
#include "update.h"

namespace pytorch_ext::train {
namespace {

namespace py = pybind11;

const Tensor& checked(const char* name, const py::handle& object) {
  if (!THPVariable_Check(object.ptr()))
    throw py::type_error(std::string("TrainStep: expected ") + name + " to be a Tensor, got " +
                         Py_TYPE(object.ptr())->tp_name);
  const Tensor& t = THPVariable_Unpack(object.ptr());
  TORCH_CHECK(is_ordinary(t), "TrainStep: expected ", name, " to be an ordinary dense tensor, got ",
              Py_TYPE(object.ptr())->tp_name);
  return t;
}

OptionalTensor optional_tensor(const py::object& object) {
  return object.is_none() ? OptionalTensor() : OptionalTensor(THPVariable_Unpack(object.ptr()));
}

class TrainStep {
 public:
  // `layers` and `loss` as pytorch_ext/chain.py and train.py describe them.
  TrainStep(const py::list& layers, const py::tuple& loss, py::object optimizer, const std::string& rule,
            std::optional<double> max_norm, int64_t accumulate)
      : chain_(layers), update_(std::move(optimizer), rule, max_norm), accumulate_(accumulate) {
    make_loss(loss);
  }

  // Loss and gradients of a batch, kept for update().
  py::object gradients(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    return py::cast(compute(checked("input", input), checked("target", target)));
  }
  // The optimiser's step with the gradients of the last batches, once there are as many as are accumulated.
  void update() {
    Turn turn(*this);
    apply();
  }
  // Both at once; None, having done nothing, where somebody wants to see the update.
  py::object call(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    if (update_.is_observed()) return py::none();
    Tensor loss = compute(checked("input", input), checked("target", target));
    apply();
    return py::cast(std::move(loss));
  }
  // The losses of batches that are rows of two tensors: so many of `rows` each.
  Tensor run(const Tensor& inputs, const Tensor& targets, const Tensor& rows, const std::vector<int64_t>& lengths) {
    Turn turn(*this);
    Tensor losses = at::empty({static_cast<int64_t>(lengths.size())}, chain_.like().options());
    const Tensor all = rows.to(inputs.device());
    int64_t begin = 0, batch = 0;
    for (int64_t length : lengths) {
      const Tensor chosen = all.narrow(0, begin, length);
      const Tensor loss = compute(at::index_select(inputs, 0, chosen), at::index_select(targets, 0, chosen));
      apply();
      losses[batch++].copy_(loss);
      begin += length;
    }
    return losses;
  }
  bool is_observed() const { return update_.is_observed(); }
  // Whether the next batch's gradients complete a step.
  bool updates_next() const { return batches_ + 1 >= accumulate_; }

 private:
  // One thread at a time; others wait without the GIL.
  class Turn {
   public:
    explicit Turn(TrainStep& step) : lock_(step.mutex_, std::try_to_lock) {
      if (lock_.owns_lock()) return;
      py::gil_scoped_release no_gil;
      lock_.lock();
    }

   private:
    std::unique_lock<std::mutex> lock_;
  };

  void make_loss(const py::tuple& description);
  bool trains_as_before() const;
  void find_trained();
  void plan(at::IntArrayRef sizes);
  Tensor compute(const Tensor& input, const Tensor& target);
  void forward_and_backward(const Tensor& input, const Tensor& target, const Tensor& loss);
  Tensor empty_number() const;
  void accumulate();
  void apply();

  std::mutex mutex_;
  Chain chain_;
  std::unique_ptr<Loss> loss_;

  at::DimVector planned_;
  bool is_planned_ = false, is_long_ = true;
  std::vector<const void*> inputs_;
  Tensor prediction_;
  Buffer prediction_gradient_;
  Tensor gradient_;  // of the prediction
  size_t first_trained_ = 0;

  Update update_;
  int64_t accumulate_, batches_ = 0;
  std::vector<Tensor> sums_;  // of accumulated gradients, by slot
};

void TrainStep::make_loss(const py::tuple& d) {
  const auto kind = d[0].cast<std::string>();
  const auto reduction = d[1].cast<int64_t>();
  const OptionalTensor weight = optional_tensor(d[2]);
  if (kind == "cross_entropy")
    loss_ = new_cross_entropy(weight, reduction, d[3].cast<int64_t>(), d[4].cast<double>());
  else if (kind == "nll_loss")
    loss_ = new_nll_loss(weight, reduction, d[3].cast<int64_t>());
  else
    loss_ = new_elementwise_loss(kind, weight, optional_tensor(d[3]), reduction);
}

// Which parameters get gradients.
void TrainStep::find_trained() {
  std::vector<const Weight*> trained;
  for (auto& slot : chain_.slots()) {
    Weight& weight = slot->weight;
    slot->trains = weight.value.requires_grad();
    if (!slot->trains || !update_.wants(weight.value)) {
      weight.gradient = Tensor();
      continue;
    }
    if (!weight.gradient.defined())
      weight.gradient = at::empty_like(weight.value.detach(), at::MemoryFormat::Contiguous);
    trained.push_back(&weight);
  }
  update_.take(std::move(trained));
}

bool TrainStep::trains_as_before() const {
  return std::all_of(chain_.slots().begin(), chain_.slots().end(),
                     [](const auto& slot) { return slot->trains == slot->weight.value.requires_grad(); });
}

void TrainStep::plan(at::IntArrayRef sizes) {
  is_planned_ = false;
  find_trained();
  at::DimVector shape(sizes);
  Tensor out;
  first_trained_ = chain_.layers().size();
  for (size_t i = 0; i < chain_.layers().size(); i++) {
    shape = chain_.layers()[i]->plan(shape);
    if (chain_.layers()[i]->output.defined()) out = chain_.layers()[i]->output;
    if (chain_.layers()[i]->has_gradients()) first_trained_ = std::min(first_trained_, i);
  }
  prediction_ = out.view(shape);
  prediction_gradient_.get(prediction_.numel(), chain_.like());
  gradient_ = prediction_gradient_.view(shape);
  inputs_.resize(chain_.layers().size());
  planned_ = sizes;
  int64_t elements = prediction_.numel();
  for (const auto& slot : chain_.slots()) elements += slot->weight.value.numel() * (shape.empty() ? 1 : shape.front());
  is_long_ = elements > 100000;
  is_planned_ = true;
}

Tensor TrainStep::compute(const Tensor& input, const Tensor& target) {
  if (chain_.refresh()) is_planned_ = false;
  check_same("TrainStep", "input", input, chain_.like());
  TORCH_CHECK(!at::autocast::is_autocast_enabled(input.device().type()) && products_are_ieee(input),
              "TrainStep: expected float32 products of full precision, got autocast, TF32 or bfloat16 products");
  if (!is_planned_ || at::IntArrayRef(planned_) != input.sizes() || !trains_as_before()) plan(input.sizes());
  loss_->read(prediction_, target);
  Tensor loss = empty_number();
  {
    WithoutGil no_gil(is_long_);
    forward_and_backward(input.is_contiguous() ? input : input.contiguous(), target, loss);
  }
  batches_++;
  return loss;
}

// For the loss; on the CPU without the dispatcher, which takes as long as a small layer.
Tensor TrainStep::empty_number() const {
  const Tensor& like = chain_.like();
  return like.is_cpu() ? Tensor(at::detail::empty_cpu({}, like.scalar_type())) : empty({}, like);
}

void TrainStep::forward_and_backward(const Tensor& input, const Tensor& target, const Tensor& loss) {
  const void* x = input.const_data_ptr();
  for (size_t i = 0; i < chain_.layers().size(); i++) inputs_[i] = std::exchange(x, chain_.layers()[i]->forward(x));
  loss_->run(loss.mutable_data_ptr(), gradient_);
  loss_->release();
  void* gradient = gradient_.mutable_data_ptr();
  for (size_t i = chain_.layers().size(); i-- > first_trained_;)
    gradient = chain_.layers()[i]->backward(inputs_[i], gradient, i > first_trained_);
  if (accumulate_ > 1) accumulate();
}

// Into sums_, in the order of the batches; the last sum is where the optimiser looks.
void TrainStep::accumulate() {
  at::NoGradGuard no_grad;
  sums_.resize(chain_.slots().size());
  for (size_t i = 0; i < chain_.slots().size(); i++) {
    Tensor& gradient = chain_.slots()[i]->weight.gradient;
    if (!gradient.defined()) continue;
    if (batches_ == 0)
      sums_[i] = gradient.clone();
    else
      sums_[i].add_(gradient);
  }
  if (batches_ + 1 < accumulate_) return;
  for (size_t i = 0; i < chain_.slots().size(); i++)
    if (chain_.slots()[i]->weight.gradient.defined()) chain_.slots()[i]->weight.gradient.copy_(sums_[i]);
}

void TrainStep::apply() {
  if (batches_ < accumulate_) return;
  batches_ = 0;
  update_.run(is_long_);
  update_.tell_schedulers();
}

}  // namespace

void define_train_step(py::module_& m) {
  py::class_<TrainStep>(m, "TrainStep")
      .def(
          py::init<const py::list&, const py::tuple&, py::object, const std::string&, std::optional<double>, int64_t>())
      .def("__call__", &TrainStep::call)
      .def("gradients", &TrainStep::gradients)
      .def("update", &TrainStep::update)
      .def("run", &TrainStep::run)
      .def("is_observed", &TrainStep::is_observed)
      .def("updates_next", &TrainStep::updates_next);
}

}  // namespace pytorch_ext::train
