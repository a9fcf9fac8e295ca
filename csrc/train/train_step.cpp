// TrainStep: forward, loss, backward and update of a chain of layers in one call from Python.
#include "train_step.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "../eager.h"
#include "../launch/covers.h"
#include "../launch/optimizer_groups.h"
#include "../launch/optimizers.h"
#include "layers.h"
#include "losses.h"

namespace pytorch_ext::train {
namespace {

namespace py = pybind11;

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

// A parameter of a module, and where the module keeps it.
struct Slot {
  py::object module_parameters;  // the dict
  py::str key;
  std::string name;  // as in state_dict()
  py::object object;
  Weight weight;
  at::DimVector sizes;
  bool trains = false;
};

// Lets other threads of Python run, where that does not take longer than what is done meanwhile.
class WithoutGil {
 public:
  explicit WithoutGil(bool release) {
    if (release) released_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> released_;
};

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
      : layer_descriptions_(layers),
        optimizer_(std::move(optimizer)),
        rule_(rule),
        max_norm_(max_norm),
        accumulate_(accumulate) {
    for (py::handle layer : layers) read_slots(py::reinterpret_borrow<py::tuple>(layer));
    make_loss(loss);
    optimizer_attributes_ = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer_.ptr(), nullptr));
    if (!optimizer_attributes_) throw py::error_already_set();
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
  py::object call(const py::handle& input, const py::handle& target) {
    Turn turn(*this);
    Tensor loss = compute(checked("input", input), checked("target", target));
    apply();
    return py::cast(std::move(loss));
  }
  // The losses of batches that are rows of two tensors: so many of `rows` each.
  Tensor run(const Tensor& inputs, const Tensor& targets, const Tensor& rows, const std::vector<int64_t>& lengths) {
    Turn turn(*this);
    Tensor losses = at::empty({static_cast<int64_t>(lengths.size())}, like().options());
    int64_t begin = 0, batch = 0;
    for (int64_t length : lengths) {
      const Tensor chosen = rows.narrow(0, begin, length).to(inputs.device());
      const Tensor loss = compute(at::index_select(inputs, 0, chosen), at::index_select(targets, 0, chosen));
      apply();
      losses[batch++].copy_(loss);
      begin += length;
    }
    return losses;
  }
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

  void read_slots(const py::tuple& layer);
  void make_loss(const py::tuple& description);
  void make_layers();
  void read_module_state();
  void refresh();
  bool trains_as_before() const;
  void find_trained();
  void plan(at::IntArrayRef sizes);
  Tensor compute(const Tensor& input, const Tensor& target);
  void forward_and_backward(const Tensor& input, const Tensor& target, const Tensor& loss);
  void accumulate();
  void apply();
  void read_groups();

  const Tensor& like() const { return slots_.front()->weight.value; }

  std::mutex mutex_;
  py::list layer_descriptions_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::unique_ptr<Loss> loss_;
  Lookups module_lookups_{true};
  bool fresh_ = false;  // the lookups are recorded

  at::DimVector planned_;
  bool is_planned_ = false, is_long_ = true;
  std::vector<const void*> inputs_;
  Tensor prediction_;
  Buffer prediction_gradient_;
  void* gradient_ = nullptr;
  size_t first_trained_ = 0;

  py::object optimizer_, optimizer_attributes_;
  std::string rule_;
  std::optional<double> max_norm_;
  int64_t accumulate_, batches_ = 0;
  std::vector<Tensor> sums_;  // of accumulated gradients, by slot
  std::vector<std::unique_ptr<OptimizerGroup>> groups_;
  std::unique_ptr<GroupReader> reader_;
  bool groups_read_ = false;
};

// Every layer is described as by chain_of() in pytorch_ext/chain.py.
void TrainStep::read_slots(const py::tuple& layer) {
  if (layer[0].cast<std::string>() != "linear") return;
  const py::object parameters = layer[1].attr("_parameters");
  for (const char* key : {"weight", "bias"}) {
    py::object object = parameters[key];
    if (object.is_none()) continue;
    auto slot = std::make_unique<Slot>();
    slot->module_parameters = parameters;
    slot->key = py::reinterpret_steal<py::str>(interned(key));
    slot->name = layer[2].cast<std::string>() + "." + key;
    slot->weight.value = THPVariable_Unpack(object.ptr());
    slot->sizes = slot->weight.value.sizes();
    slot->object = std::move(object);
    slots_.push_back(std::move(slot));
  }
}

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

// The parameters are those read at construction; dropout may have been switched since the last call.
void TrainStep::refresh() {
  module_lookups_.forget();
  for (auto& slot : slots_) {
    PyObject* object = module_lookups_.find(slot->module_parameters.ptr(), slot->key.ptr());
    TORCH_CHECK(object == slot->object.ptr(), "TrainStep: expected the parameter ", slot->name,
                " that it was made with, got another object; make a new TrainStep");
  }
  static PyObject *const training = interned("training"), *const p = interned("p");
  layers_.clear();
  size_t slot = 0;
  for (py::handle handle : layer_descriptions_) {
    const auto d = py::reinterpret_borrow<py::tuple>(handle);
    const auto kind = d[0].cast<std::string>();
    if (kind == "linear") {
      Weight* weight = &slots_[slot++]->weight;
      const bool has_bias = slot < slots_.size() &&
                            slots_[slot]->module_parameters.is(slots_[slot - 1]->module_parameters) &&
                            slots_[slot]->key.cast<std::string>() == "bias";
      layers_.push_back(new_linear(weight, has_bias ? &slots_[slot++]->weight : nullptr, d[3].cast<std::string>()));
    } else if (kind == "activation") {
      layers_.push_back(new_activation(d[1].cast<std::string>()));
    } else if (kind == "softmax") {
      layers_.push_back(new_softmax(d[1].cast<int64_t>(), d[2].cast<bool>()));
    } else if (kind == "flatten") {
      layers_.push_back(new_flatten(d[1].cast<int64_t>(), d[2].cast<int64_t>()));
    } else if (kind == "squeeze") {
      layers_.push_back(new_squeeze(d[1].cast<int64_t>()));
    } else if (kind == "reshape") {
      layers_.push_back(new_reshape(d[1].cast<std::vector<int64_t>>()));
    } else {
      const py::object attributes = d[1].attr("__dict__");
      PyObject* is_training = module_lookups_.find(attributes.ptr(), training);
      PyObject* rate = module_lookups_.find(attributes.ptr(), p);
      const double probability = PyFloat_AsDouble(rate);
      if (is_training == Py_True && probability > 0) layers_.push_back(new_dropout(probability));
    }
    if (!layers_.empty()) layers_.back()->set_reference(like());
  }
  is_planned_ = false;
  fresh_ = true;
}

// Which parameters want gradients: those that require one and are in the optimiser, or count for the norm.
void TrainStep::find_trained() {
  std::unordered_set<const c10::TensorImpl*> optimised;
  for (py::handle group : py::reinterpret_borrow<py::list>(optimizer_.attr("param_groups")))
    for (py::handle p : py::reinterpret_borrow<py::list>(group["params"]))
      if (THPVariable_Check(p.ptr())) optimised.insert(THPVariable_Unpack(p.ptr()).unsafeGetTensorImpl());
  for (auto& slot : slots_) {
    const Tensor& value = slot->weight.value;
    slot->trains = value.requires_grad();
    const bool wanted = slot->trains && (max_norm_ || optimised.count(value.unsafeGetTensorImpl()));
    if (!wanted)
      slot->weight.gradient = Tensor();
    else if (!slot->weight.gradient.defined())
      slot->weight.gradient = at::empty_like(value.detach(), at::MemoryFormat::Contiguous);
  }
}

bool TrainStep::trains_as_before() const {
  return std::all_of(slots_.begin(), slots_.end(),
                     [](const auto& slot) { return slot->trains == slot->weight.value.requires_grad(); });
}

void TrainStep::plan(at::IntArrayRef sizes) {
  is_planned_ = false;
  find_trained();
  at::DimVector shape(sizes);
  Tensor out;
  first_trained_ = layers_.size();
  for (size_t i = 0; i < layers_.size(); i++) {
    shape = layers_[i]->plan(shape);
    if (layers_[i]->output.defined()) out = layers_[i]->output;
    if (layers_[i]->has_gradients()) first_trained_ = std::min(first_trained_, i);
  }
  prediction_ = out.view(shape);
  gradient_ = prediction_gradient_.get(prediction_.numel(), like());
  inputs_.resize(layers_.size());
  planned_ = sizes;
  groups_read_ = false;
  int64_t elements = prediction_.numel();
  for (const auto& slot : slots_) elements += slot->weight.value.numel() * (shape.empty() ? 1 : shape.front());
  is_long_ = elements > 100000;
  is_planned_ = true;
}

Tensor TrainStep::compute(const Tensor& input, const Tensor& target) {
  if (!fresh_ || !module_lookups_.unchanged()) refresh();
  for (const auto& slot : slots_) {
    const Tensor& value = slot->weight.value;
    TORCH_CHECK(value.sizes() == slot->sizes && value.scalar_type() == like().scalar_type() &&
                    value.device() == like().device(),
                "TrainStep: expected the parameter ", slot->name, " ", at::IntArrayRef(slot->sizes), " of ",
                like().scalar_type(), " on ", like().device(), ", got ", value.sizes(), " of ", value.scalar_type(),
                " on ", value.device());
  }
  check_same("TrainStep", "input", input, like());
  TORCH_CHECK(!at::autocast::is_autocast_enabled(input.device().type()) && products_are_ieee(input),
              "TrainStep: expected float32 products of full precision, got autocast, TF32 or bfloat16 products");
  if (!is_planned_ || planned_ != input.sizes() || !trains_as_before()) plan(input.sizes());
  loss_->read(prediction_, target);
  Tensor loss = at::empty({}, prediction_.options());
  {
    WithoutGil no_gil(is_long_);
    forward_and_backward(input.is_contiguous() ? input : input.contiguous(), target, loss);
  }
  batches_++;
  return loss;
}

void TrainStep::forward_and_backward(const Tensor& input, const Tensor& target, const Tensor& loss) {
  const void* x = input.const_data_ptr();
  for (size_t i = 0; i < layers_.size(); i++) inputs_[i] = std::exchange(x, layers_[i]->forward(x));
  loss_->run(loss.mutable_data_ptr(), gradient_);
  loss_->release();
  void* gradient = gradient_;
  for (size_t i = layers_.size(); i-- > first_trained_;)
    gradient = layers_[i]->backward(inputs_[i], gradient, i > first_trained_);
  if (accumulate_ > 1) accumulate();
}

// Into sums_, in the order of the batches; the last sum is where the optimiser looks.
void TrainStep::accumulate() {
  at::NoGradGuard no_grad;
  sums_.resize(slots_.size());
  for (size_t i = 0; i < slots_.size(); i++) {
    Tensor& gradient = slots_[i]->weight.gradient;
    if (!gradient.defined()) continue;
    if (batches_ == 0)
      sums_[i] = gradient.clone();
    else
      sums_[i].add_(gradient);
  }
  if (batches_ + 1 < accumulate_) return;
  for (size_t i = 0; i < slots_.size(); i++)
    if (slots_[i]->weight.gradient.defined()) slots_[i]->weight.gradient.copy_(sums_[i]);
}

void TrainStep::read_groups() {
  static PyObject *const param_groups = interned("param_groups"), *const state = interned("state");
  groups_.clear();
  reader_ = std::make_unique<GroupReader>(GroupReader{nullptr, Lookups(true)});
  reader_->obeys_hints = false;
  reader_->gradient_of = [this](const Tensor& p) {
    for (const auto& slot : slots_)
      if (slot->weight.value.is_same(p)) return slot->weight.gradient;
    return Tensor();
  };
  Lookups& lookups = reader_->lookups;
  PyObject* groups = lookups.find(optimizer_attributes_.ptr(), param_groups);
  reader_->states = lookups.find(optimizer_attributes_.ptr(), state);
  TORCH_CHECK(groups && PyList_Check(groups) && reader_->states, "TrainStep: expected an optimiser with param_groups");
  lookups.items(groups);
  for (py::handle group : py::reinterpret_borrow<py::list>(groups)) {
    std::unique_ptr<OptimizerGroup> read;
    if (rule_ == "sgd")
      read = std::make_unique<SgdGroup>();
    else
      read = std::make_unique<AdamGroup>();
    TORCH_CHECK(read->read(group.ptr(), *reader_),
                "TrainStep: expected options and state that the optimiser's kernels take (numbers, no capturable, no "
                "differentiable, state as the parameters), got others");
    groups_.push_back(std::move(read));
  }
  groups_read_ = true;
}

void TrainStep::apply() {
  if (batches_ < accumulate_) return;
  const bool as_before = groups_read_ && reader_->lookups.unchanged() &&
                         std::all_of(groups_.begin(), groups_.end(), [](auto& g) { return g->fits(); });
  if (!as_before) read_groups();
  batches_ = 0;
  WithoutGil no_gil(is_long_);
  if (max_norm_) {
    std::vector<Tensor> gradients;
    for (const auto& slot : slots_)
      if (slot->weight.gradient.defined()) gradients.push_back(slot->weight.gradient);
    if (!gradients.empty()) clip_gradients(gradients, *max_norm_, false);
  }
  for (const auto& group : groups_) group->step();
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
      .def("updates_next", &TrainStep::updates_next);
}

}  // namespace pytorch_ext::train
