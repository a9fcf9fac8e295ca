// TrainStep: forward, loss, backward and update of a chain of layers in one call from Python.
#include "train_step.h"

#include <ATen/ops/empty.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "../eager.h"
#include "../launch/covers.h"
#include "pass.h"
#include "update.h"

namespace pytorch_ext::train {
namespace {

namespace py = pybind11;

const Tensor& checked(const char* name, const py::handle& object) {
  TORCH_CHECK_TYPE(THPVariable_Check(object.ptr()), "TrainStep: expected ", name, " to be a Tensor, got ",
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
  // Both at once; null, having done nothing, where somebody wants to see the update.
  py::object call(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    if (update_.is_observed()) return {};
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
  // One thread at a time; others wait without the GIL, which each has that reads or writes this.
  class Turn {
   public:
    explicit Turn(TrainStep& step) : step_(step) {
      while (step_.is_taken_) {
        step_.waiting_++;
        {
          py::gil_scoped_release no_gil;
          std::unique_lock<std::mutex> lock(step_.mutex_);
          step_.ended_.wait(lock, [&] { return !step_.is_taken_; });
        }
        step_.waiting_--;
      }
      step_.is_taken_.store(true, std::memory_order_relaxed);
    }
    ~Turn() {
      if (step_.waiting_ == 0) {
        step_.is_taken_.store(false, std::memory_order_release);
        return;
      }
      const std::lock_guard<std::mutex> lock(step_.mutex_);
      step_.is_taken_ = false;
      step_.ended_.notify_one();
    }

   private:
    TrainStep& step_;
  };

  bool trains_as_before() const;
  void find_trained();
  Tensor compute(const Tensor& input, const Tensor& target);
  void accumulate();
  void apply();

  std::atomic<bool> is_taken_{false};
  int waiting_ = 0;
  std::mutex mutex_;  // for those who wait
  std::condition_variable ended_;
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
  Tensor loss = empty({}, chain_.like());
  {
    WithoutGil no_gil(pass_.is_long());
    pass_.run(input.is_contiguous() ? input : input.contiguous(), target, loss);
    if (accumulate_ > 1) accumulate();
  }
  batches_++;
  return loss;
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

// The Python class's `__call__`, which the native one replaces and leaves to it what is out of the ordinary.
PyObject* python_call = nullptr;

// The native step that a Python TrainStep holds; null where it runs a loop instead.
TrainStep* native_step_of(PyObject* self) {
  static PyObject* const name = PyUnicode_InternFromString("_native");
  static const auto* const type = reinterpret_cast<PyTypeObject*>(py::type::of<TrainStep>().release().ptr());
  const auto held = py::reinterpret_steal<py::object>(PyObject_GetAttr(self, name));
  if (!held) throw py::error_already_set();
  if (Py_TYPE(held.ptr()) != type) return nullptr;
  return reinterpret_cast<py::detail::instance*>(held.ptr())->get_value_and_holder().value_ptr<TrainStep>();
}

PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  HANDLE_TH_ERRORS
  if (count == 2 && !names)
    if (TrainStep* step = native_step_of(self))
      if (py::object loss = step->call(arguments[0], arguments[1])) return loss.release().ptr();
  std::vector<PyObject*> all{self};
  all.insert(all.end(), arguments, arguments + count + (names ? PyTuple_GET_SIZE(names) : 0));
  return PyObject_Vectorcall(python_call, all.data(), static_cast<size_t>(count) + 1, names);
  END_HANDLE_TH_ERRORS
}

// A plain C function as the class's `__call__`: Python's and pybind11's take a tenth of the smallest model's step.
void call_natively(const py::type& python_class) {
  static PyMethodDef method{"__call__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
                            METH_FASTCALL | METH_KEYWORDS,
                            "__call__($self, input, target)\n--\n\nThe loss of this batch, a 0-dim tensor without "
                            "history; the parameters are updated."};
  python_call = py::object(python_class.attr("__call__")).release().ptr();
  python_class.attr("__call__") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(python_class.ptr()), &method));
}

}  // namespace

void define_train_step(py::module_& m) {
  m.def("call_natively", &call_natively);
  py::class_<TrainStep>(m, "TrainStep")
      .def(
          py::init<const py::list&, const py::tuple&, py::object, const std::string&, std::optional<double>, int64_t>())
      .def("gradients", &TrainStep::gradients)
      .def("update", &TrainStep::update)
      .def("run", &TrainStep::run)
      .def("is_observed", &TrainStep::is_observed)
      .def("updates_next", &TrainStep::updates_next);
}

}  // namespace pytorch_ext::train
