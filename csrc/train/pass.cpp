#include "pass.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <utility>

namespace pytorch_ext::train {

void Pass::plan(at::IntArrayRef sizes) {
  is_planned_ = false;
  at::DimVector shape(sizes);
  Tensor out;
  first_trained_ = chain_.layers().size();
  for (size_t i = 0; i < chain_.layers().size(); i++) {
    Layer& layer = *chain_.layers()[i];
    shape = layer.plan(shape);
    if (layer.output.defined()) out = layer.output;
    if (layer.has_gradients()) first_trained_ = std::min(first_trained_, i);
  }
  memory_.prediction = out.view(shape);
  memory_.gradient = memory_.prediction_gradient.get_like(memory_.prediction);
  inputs_.resize(chain_.layers().size());
  planned_ = sizes;
  int64_t elements = memory_.prediction.numel();
  for (const auto& slot : chain_.slots()) elements += slot->weight.value.numel() * (shape.empty() ? 1 : shape.front());
  is_long_ = elements > 100000;
  is_planned_ = true;
}

void Pass::forget_plan() {
  is_planned_ = false;
  graphs_.clear();
}

bool Pass::has_moved() {
  const Tensor& like = chain_.like();
  const bool is_same = like.scalar_type() == dtype_ && like.device() == device_;
  if (is_same && like.is_cpu()) return false;
  const auto stream = current_stream(like);
  const int64_t capture = capture_number(like);
  if (is_same && stream == stream_ && capture == capture_) return false;
  dtype_ = like.scalar_type(), device_ = like.device(), stream_ = stream, capture_ = capture;
  forget_plan();
  memory_ = Memory();
  chain_.forget();
  return true;
}

void Pass::run(const Tensor& input, const Tensor& loss) {
  draw(nullptr);
  launch(input, loss);
  loss_->release();
}

bool Pass::run(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending) {
  at::AutoDispatchBelowADInplaceOrView no_grad;
  if (capture_) {
    run(input, loss);
    ending.launch(/*recorded=*/false);
    return false;
  }
  UseWorkspaces kept(memory_.workspaces);
  const bool is_graph = repeat(input, target, loss, ending);
  if (!is_graph) {
    draw(nullptr);
    launch(input, loss);
    ending.launch(/*recorded=*/false);
    prepare(input, target, loss, ending);
  }
  loss_->release();
  return is_graph;
}

std::string Pass::add_to(TrainSteps& steps, int64_t rows) const {
  for (const auto& layer : chain_.layers())
    if (!layer->add_to(steps, rows))
      return std::string("expected at most ") + std::to_string(TrainSteps::most_layers) +
             " Linear layers, of inputs (batch, features), got a " + layer->name();
  return loss_->add_to(steps) ? ""
                              : "expected MSELoss, BCELoss, BCEWithLogitsLoss without weights, or CrossEntropyLoss "
                                "of one class index a row, got another loss";
}

void Pass::draw(GraphArguments* arguments) {
  for (const auto& layer : chain_.layers()) layer->draw(arguments);
}

void Pass::launch(const Tensor& input, const Tensor& loss) {
  const void* x = input.const_data_ptr();
  const auto& layers = chain_.layers();
  for (size_t i = 0; i < layers.size(); i++) inputs_[i] = std::exchange(x, layers[i]->forward(x));
  loss_->run(loss.mutable_data_ptr(), memory_.gradient);
  void* gradient = memory_.gradient.mutable_data_ptr();
  for (size_t i = layers.size(); i-- > first_trained_;)
    gradient = layers[i]->backward(inputs_[i], gradient, i > first_trained_);
}

// Next time such a batch may be launched as a graph, unless what the kernels read of it are not its copies themselves.
void Pass::prepare(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending) {
  memory_.input.get_like(input), memory_.loss.get_like(loss);
  memory_.arguments.get(GraphArguments::most, loss, at::kLong);
  const Tensor own_target = memory_.target.get_like(target);
  read(own_target);
  LaunchKey key;
  GraphArguments arguments;
  if (loss_->reads(own_target) && identify(target, key) && add_to(arguments, key, ending))
    graphs_.remember(std::move(key));
}

// The same by a graph, over copies of the batch; false, having done nothing, where there is none for such a batch.
bool Pass::repeat(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending) {
  LaunchKey key;
  GraphArguments arguments;
  if (!identify(target, key) || !add_to(arguments, key, ending) || !graphs_.knows(key)) return false;
  const Tensor own_input = memory_.input.get_like(input), own_target = memory_.target.get_like(target);
  const Tensor own_loss = memory_.loss.get_like(loss), given = target.contiguous();
  const auto copied = [](const Tensor& from, const Tensor& to) {
    return GraphInput{static_cast<const uint32_t*>(from.const_data_ptr()),
                      static_cast<uint32_t*>(to.mutable_data_ptr()),
                      static_cast<int64_t>(from.nbytes() / sizeof(uint32_t))};
  };
  arguments.inputs[0] = copied(input, own_input), arguments.inputs[1] = copied(given, own_target);
  void* const* loss_at = arguments.add(loss.mutable_data_ptr());
  draw(&arguments);
  const auto launches = [&] {
    read(own_target);
    launch(own_input, own_loss);
    ending.launch(/*recorded=*/true);
  };
  graphs_.run(chain_.like(), key, arguments, launches, own_loss, loss_at);
  return true;
}

// What of the arguments of a graph is known before the batch; false where there is no room for all of them.
bool Pass::add_to(GraphArguments& arguments, LaunchKey& key, Ending& ending) {
  arguments.at = reinterpret_cast<uint64_t*>(memory_.arguments.address());
  constexpr int of_the_loss = 1;
  const int others = of_the_loss + static_cast<int>(chain_.layers().size());
  return ending.add_to(arguments, key) && arguments.count + others <= GraphArguments::most;
}

// All that the arguments of the launches depend on, but for the layers, with which graphs are forgotten; false where
// they depend on more.
bool Pass::identify(const Tensor& target, LaunchKey& key) const {
  const auto address = [](const Tensor& t) { return t.defined() ? reinterpret_cast<int64_t>(t.const_data_ptr()) : 0; };
  key.assign(planned_.begin(), planned_.end());
  key.push_back(static_cast<int64_t>(target.scalar_type()));
  key.insert(key.end(), target.sizes().begin(), target.sizes().end());
  for (const auto& slot : chain_.slots())
    for (const Tensor* t : {&slot->weight.value, &slot->weight.gradient}) key.push_back(address(*t));
  for (const auto& layer : chain_.layers())
    for (const Buffer& buffer : layer->memory()) key.push_back(buffer.address());
  for (const Tensor& t : memory_.workspaces.all()) key.push_back(address(t));
  for (const Buffer* buffer :
       {&memory_.prediction_gradient, &memory_.input, &memory_.target, &memory_.loss, &memory_.arguments})
    key.push_back(buffer->address());
  return loss_->append_weights(key);
}

}  // namespace pytorch_ext::train
