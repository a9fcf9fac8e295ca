// TrainStep: forward, loss, backward and update of a chain of layers in one call from Python.
#include "train_step.h"

#include <ATen/ops/empty.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>

#include "../eager.h"
#include "../launch/covers.h"
#include "gradient_sums.h"
#include "one_launch.h"

namespace pytorch_ext::train {
namespace {

namespace py = pybind11;

const Tensor& checked(const char* name, const py::handle& object) {
  TORCH_CHECK_TYPE(THPVariable_Check(object.ptr()), "TrainStep: expected ", name, " to be a Tensor, got ",
                   Py_TYPE(object.ptr())->tp_name);
  const Tensor& t = THPVariable_Unpack(object.ptr());
  TORCH_CHECK(is_ordinary(t), "TrainStep: expected ", name, " to be an ordinary dense tensor, got a ",
              Py_TYPE(object.ptr())->tp_name, " of layout ", t.layout(), " on ", t.device());
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

// The batches from number `first` on that one launch may take: their inputs are gathered in memory.
std::vector<int64_t> lengths_of_a_launch(const std::vector<int64_t>& lengths, size_t first, const Tensor& input) {
  constexpr int64_t MOST_ELEMENTS = int64_t(1) << 24;
  const int64_t of_a_row = input.numel() / std::max<int64_t>(input.size(0), 1);
  std::vector<int64_t> found;
  int64_t elements = 0;
  for (size_t i = first; i < lengths.size() && found.size() < TrainSteps::most_steps; i++) {
    elements += lengths[i] * of_a_row;
    if (!found.empty() && elements > MOST_ELEMENTS) break;
    found.push_back(lengths[i]);
  }
  return found;
}

class TrainStep {
 public:
  // `layers`, `places` and `loss` as pytorch_ext/chain.py and train.py describe them.
  TrainStep(const py::list& layers, const py::list& places, const py::tuple& loss, py::object optimizer,
            const std::string& rule, std::optional<double> max_norm, int64_t accumulate)
      : chain_(layers, places),
        pass_(chain_, loss_of(loss)),
        update_(std::move(optimizer), rule, max_norm),
        one_launch_(chain_, pass_, update_),
        sums_(chain_, accumulate) {}

  // Loss and gradients of a batch, kept for update().
  py::object gradients(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    const Tensor &x = checked("input", input), &y = checked("target", target);
    prepare(x, y, /*updates=*/false);
    Tensor loss = empty({}, chain_.like());
    pass(x, y, loss, /*updates=*/false);
    return py::cast(std::move(loss));
  }
  // The optimiser's step with the gradients of the last batches, once there are as many as are accumulated.
  void update() {
    Turn turn(*this);
    or_undo([&] {
      update_.refresh();
      apply();
    });
  }
  // Both at once; null, having done nothing, where somebody wants to see the update.
  py::object call(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    if (update_.is_observed()) return {};
    return or_undo([&] {
      const Tensor &x = checked("input", input), &y = checked("target", target);
      prepare(x, y, /*updates=*/true);
      Tensor loss = empty({}, chain_.like());
      if (!x.is_cpu() && one_launch_.plan({x.dim() ? x.size(0) : 0}, y, sums_.are_needed()))
        launch(x.is_contiguous() ? x : x.contiguous(), y, loss);
      else
        pass(x, y, loss, /*updates=*/true);
      return py::cast(std::move(loss));
    });
  }
  // The losses of batches that are rows of two tensors: so many of `rows` each.
  Tensor run(const Tensor& inputs, const Tensor& targets, const Tensor& rows, const std::vector<int64_t>& lengths) {
    Turn turn(*this);
    return or_undo([&] { return take(inputs, targets, rows, lengths); });
  }
  bool is_observed() const { return update_.is_observed(); }
  // Why the last steps were not one launch, and of how many blocks they were where they were.
  std::string reason() const { return one_launch_.reason(); }
  int blocks() const { return one_launch_.blocks(); }
  int exact_blocks() const { return one_launch_.exact_blocks; }
  void set_exact_blocks(int count) { one_launch_.exact_blocks = count; }
  // Whether the next batch's gradients complete a step.
  bool updates_next() const { return sums_.completes_next(); }

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

  // take(), which takes steps; where it raises, nothing is left of that in the optimiser.
  template <class Take>
  std::invoke_result_t<Take> or_undo(Take&& take) {
    try {
      return take();
    } catch (...) {
      update_.undo();
      throw;
    }
  }

  class Rest;
  bool trains_as_before() const;
  void find_trained();
  void prepare(const Tensor& input, const Tensor& target, bool updates);
  void pass(const Tensor& input, const Tensor& target, const Tensor& loss, bool updates);
  void pass_on_device(const Tensor& input, const Tensor& target, const Tensor& loss, bool updates);
  void launch(const Tensor& inputs, const Tensor& targets, const Tensor& losses);
  Tensor take(const Tensor& inputs, const Tensor& targets, const Tensor& rows, const std::vector<int64_t>& lengths);
  void apply();

  std::atomic<bool> is_taken_{false};
  int waiting_ = 0;
  std::mutex mutex_;  // for those who wait
  std::condition_variable ended_;
  Chain chain_;
  Pass pass_;
  Update update_;
  OneLaunch one_launch_;
  GradientSums sums_;
};

Tensor TrainStep::take(const Tensor& inputs, const Tensor& targets, const Tensor& rows,
                       const std::vector<int64_t>& lengths) {
  Tensor losses = at::empty({static_cast<int64_t>(lengths.size())}, chain_.like().options());
  const Tensor all = rows.to(inputs.device());
  int64_t begin = 0;
  for (size_t batch = 0; batch < lengths.size();) {
    const auto choose = [&](int64_t first, int64_t count) {
      const Tensor chosen = all.narrow(0, first, count);
      return std::make_pair(at::index_select(inputs, 0, chosen), at::index_select(targets, 0, chosen));
    };
    const auto [x, y] = choose(begin, lengths[batch]);
    prepare(x, y, /*updates=*/true);
    const std::vector<int64_t> together = lengths_of_a_launch(lengths, batch, x);
    if (!x.is_cpu() && one_launch_.plan(together, y, sums_.are_needed())) {
      const int64_t count = std::accumulate(together.begin(), together.end(), int64_t(0));
      const auto [xs, ys] = choose(begin, count);
      for (int64_t length : together)
        if (const Tensor some = xs.narrow(0, 0, length); !pass_.is_planned(some.sizes()))
          prepare(some, ys.narrow(0, 0, length), /*updates=*/true);
      launch(xs, ys, losses.narrow(0, static_cast<int64_t>(batch), static_cast<int64_t>(together.size())));
      begin += count, batch += together.size();
    } else {
      pass(x, y, losses.select(0, static_cast<int64_t>(batch)), /*updates=*/true);
      begin += lengths[batch++];
    }
  }
  return losses;
}

// Which parameters get gradients.
void TrainStep::find_trained() {
  Update::check_mode();
  std::vector<const Weight*> trained, unwanted;
  for (size_t i = 0; i < chain_.slots().size(); i++) {
    Slot* slot = chain_.slots()[i].get();
    Weight& weight = slot->weight;
    const bool trains = weight.value.requires_grad(), has_sum = sums_.has(i);
    if (!has_sum && (!trains || !update_.wants(weight.value))) {
      weight.gradient = Tensor();
      if (trains) unwanted.push_back(&weight);
    } else {
      if (!weight.gradient.defined())
        weight.gradient = at::empty_like(weight.value.detach(), at::MemoryFormat::Contiguous);
      trained.push_back(&weight);
    }
    slot->trains = trains;
  }
  update_.take(std::move(trained), std::move(unwanted));
}

bool TrainStep::trains_as_before() const {
  return std::all_of(chain_.slots().begin(), chain_.slots().end(),
                     [](const auto& slot) { return slot->trains == slot->weight.value.requires_grad(); });
}

// Everything that can be wrong with a batch is found here, and with `updates` what can be wrong with the optimiser.
void TrainStep::prepare(const Tensor& input, const Tensor& target, bool updates) {
  sums_.begin();
  if (pass_.has_moved()) {
    update_.forget_memory();
    sums_.move();
  }
  if (chain_.refresh()) pass_.forget_plan();
  check_same("TrainStep", "input", input, chain_.like());
  TORCH_CHECK(!at::autocast::is_autocast_enabled(input.device().type()) && products_are_ieee(input),
              "TrainStep: expected float32 products of full precision, got autocast, TF32 or bfloat16 products");
  if (!pass_.is_planned(input.sizes()) || !trains_as_before() || update_.misses_gradients()) {
    find_trained();
    pass_.plan(input.sizes());
  }
  pass_.read(target);
  if (updates && sums_.completes_next()) update_.refresh();
}

// The steps that one_launch_ has planned.
void TrainStep::launch(const Tensor& inputs, const Tensor& targets, const Tensor& losses) {
  {
    WithoutGil no_gil(pass_.is_long());
    at::AutoDispatchBelowADInplaceOrView no_grad;
    one_launch_.run(inputs, targets, losses);
  }
  update_.tell_schedulers();
}

// Loss and gradients of a batch that prepare() has seen; with `updates` the update too, where it is the last of a step.
void TrainStep::pass(const Tensor& input, const Tensor& target, const Tensor& loss, bool updates) {
  const Tensor x = input.is_contiguous() ? input : input.contiguous();
  if (!x.is_cpu()) return pass_on_device(x, target, loss, updates);
  {
    WithoutGil no_gil(pass_.is_long());
    pass_.run(x, loss);
    sums_.launch();
  }
  sums_.launched();
  if (updates) apply();
}

// What a step does behind its backward pass.
class TrainStep::Rest final : public Ending {
 public:
  Rest(TrainStep& step, bool updates) : step_(step), updates_(updates) {}

  bool add_to(GraphArguments& arguments, LaunchKey& key) override {
    step_.sums_.add_to(key);
    key.push_back(updates_);
    return !updates_ || step_.update_.add_to(arguments, key);
  }
  void launch(bool recorded) override {
    step_.sums_.launch();
    if (updates_) recorded ? step_.update_.record() : step_.update_.step();
  }

 private:
  TrainStep& step_;
  bool updates_;
};

void TrainStep::pass_on_device(const Tensor& input, const Tensor& target, const Tensor& loss, bool updates) {
  const bool completes = updates && sums_.completes_next();
  {
    WithoutGil no_gil(pass_.is_long());
    Rest rest(*this, completes);
    const bool by_graph = pass_.run(input, target, loss, rest);
    sums_.launched();
    if (completes) sums_.restart();
    if (completes && by_graph) update_.stepped(1);
  }
  if (completes) update_.tell_schedulers();
}

void TrainStep::apply() {
  if (!sums_.is_complete()) return;
  sums_.restart();
  {
    WithoutGil no_gil(pass_.is_long());
    update_.step();
  }
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
      .def(py::init<const py::list&, const py::list&, const py::tuple&, py::object, const std::string&,
                    std::optional<double>, int64_t>())
      .def("gradients", &TrainStep::gradients)
      .def("update", &TrainStep::update)
      .def("run", &TrainStep::run)
      .def("is_observed", &TrainStep::is_observed)
      .def("reason", &TrainStep::reason)
      .def("blocks", &TrainStep::blocks)
      .def_property("exact_blocks", &TrainStep::exact_blocks, &TrainStep::set_exact_blocks)
      .def("updates_next", &TrainStep::updates_next);
}

}  // namespace pytorch_ext::train
