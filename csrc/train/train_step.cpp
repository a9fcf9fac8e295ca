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
#include "pass.h"
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

std::unique_ptr<Loss> loss_of(const py::tuple& d) {
  const auto kind = d[0].cast<std::string>();
  const auto reduction = d[1].cast<int64_t>();
  const OptionalTensor weight = optional_tensor(d[2]);
  if (kind == "cross_entropy") return new_cross_entropy(weight, reduction, d[3].cast<int64_t>(), d[4].cast<double>());
  if (kind == "nll_loss") return new_nll_loss(weight, reduction, d[3].cast<int64_t>());
  return new_elementwise_loss(kind, weight, optional_tensor(d[3]), reduction);
}

class TrainStep {
 public:
  // `layers` and `loss` as pytorch_ext/chain.py and train.py describe them.
  TrainStep(const py::list& layers, const py::tuple& loss, py::object optimizer, const std::string& rule,
            std::optional<double> max_norm, int64_t accumulate)
      : chain_(layers),
        pass_(chain_, loss_of(loss)),
        update_(std::move(optimizer), rule, max_norm),
        accumulate_(accumulate) {}

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

  bool trains_as_before() const;
  void find_trained();
  Tensor compute(const Tensor& input, const Tensor& target);
  Tensor empty_number() const;
  void accumulate();
  void apply();

  std::mutex mutex_;
  Chain chain_;
  Pass pass_;
  Update update_;
  int64_t accumulate_, batches_ = 0;
  std::vector<Tensor> sums_;  // of accumulated gradients, by slot
};

// Which parameters get gradients.
void TrainStep::find_trained() {
  std::vector<const Weight*> trained;
  for (auto& slot : chain_.slots()) {
    Weight& weight = slot->weight;
    const bool trains = weight.value.requires_grad();
    if (!trains || !update_.wants(weight.value)) {
      weight.gradient = Tensor();
    } else {
      if (!weight.gradient.defined())
        weight.gradient = at::empty_like(weight.value.detach(), at::MemoryFormat::Contiguous);
      trained.push_back(&weight);
    }
    slot->trains = trains;
  }
  update_.take(std::move(trained));
}

bool TrainStep::trains_as_before() const {
  return std::all_of(chain_.slots().begin(), chain_.slots().end(),
                     [](const auto& slot) { return slot->trains == slot->weight.value.requires_grad(); });
}

Tensor TrainStep::compute(const Tensor& input, const Tensor& target) {
  if (pass_.has_moved())
    for (const Tensor& sum : sums_)
      if (sum.defined()) sum.record_stream(*current_stream(sum));
  if (chain_.refresh()) pass_.forget_plan();
  check_same("TrainStep", "input", input, chain_.like());
  TORCH_CHECK(!at::autocast::is_autocast_enabled(input.device().type()) && products_are_ieee(input),
              "TrainStep: expected float32 products of full precision, got autocast, TF32 or bfloat16 products");
  if (!pass_.is_planned(input.sizes()) || !trains_as_before()) {
    find_trained();
    pass_.plan(input.sizes());
  }
  pass_.read(target);
  Tensor loss = empty_number();
  {
    WithoutGil no_gil(pass_.is_long());
    pass_.run(input.is_contiguous() ? input : input.contiguous(), target, loss);
    if (accumulate_ > 1) accumulate();
  }
  batches_++;
  return loss;
}

// For the loss; on the CPU without the dispatcher, which takes as long as a small layer.
Tensor TrainStep::empty_number() const {
  const Tensor& like = chain_.like();
  return like.is_cpu() ? Tensor(at::detail::empty_cpu({}, like.scalar_type())) : empty({}, like);
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
  update_.run(pass_.is_long());
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
