// recorded(): an operator's node of autograd's graph. It does what torch::autograd::Function does for one output and a
// fixed number of inputs, without its maps, lists and strings, which cost a small operator more than its kernel.
#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace pytorch_ext {

using torch::autograd::Node;

// Up to torch 2.12 graphs hold nodes by shared_ptr; from 2.13 on nodes count their references themselves, and a node
// that saves its own output, which knows the node, has to let go of it in release_resources().
using NodePointer = decltype(std::declval<Node&>().getptr());
constexpr bool COUNTS_ITSELF = std::is_base_of_v<c10::intrusive_ptr_target, Node>;

// Pointer is a parameter so that what another torch's pointer lacks is not looked up.
template <class T, class Pointer = NodePointer>
Pointer own(T* node) {
  if constexpr (COUNTS_ITSELF)
    return Pointer::unsafe_steal_from_new(node);
  else
    return Pointer(node, [](auto* last) { deleteNode(last); });
}

template <class Base>
void release_base(Base& node) {
  if constexpr (COUNTS_ITSELF) node.Base::release_resources();
}

// The kernels' result: nothing is recorded inside.
template <class Kernels>
auto below_autograd(Kernels&& kernels) {
  at::AutoDispatchBelowADInplaceOrView below;
  return kernels();
}

// Which inputs' gradients the backward pass asks for.
using Needs = std::array<bool, 8>;

// The gradients of an operator's inputs, given the one of its output:
//   struct Gradients {
//     static constexpr const char* name;           // of the node
//     static constexpr size_t inputs, saved;       // how many tensors
//     std::array<Tensor, inputs> operator()(const Tensor& grad, std::array<Tensor, saved>& tensors, const Needs&);
//     template <class Visit> void each(Visit&& visit) const;  // visit(field) for every field it depends on
//   };
template <class Gradients>
class OperatorNode final : public Node {
 public:
  explicit OperatorNode(Gradients gradients, torch::autograd::edge_list&& edges)
      : Node(std::move(edges)), gradients_(std::move(gradients)) {}

  // `output` is the forward pass's result, already attached to this node.
  void save(const std::array<at::Tensor, Gradients::saved>& tensors, const at::Tensor& output) {
    for (size_t i = 0; i < Gradients::saved; i++)
      saved_[i] = torch::autograd::SavedVariable(tensors[i], /*is_output=*/tensors[i].is_same(output));
  }

  std::string name() const override { return Gradients::name; }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    torch::autograd::variable_list result(Gradients::inputs);
    if (!grads[0].defined()) return result;
    std::lock_guard<std::mutex> lock(mutex_);
    std::array<at::Tensor, Gradients::saved> tensors;
    const NodePointer self = this->getptr();
    for (size_t i = 0; i < Gradients::saved; i++) tensors[i] = saved_[i].unpack(self);
    Needs needs{};
    for (size_t i = 0; i < Gradients::inputs; i++) needs[i] = task_should_compute_output(i);
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (!at::GradMode::is_enabled()) below.emplace();  // nothing to record: straight to the kernels
    auto found = gradients_(grads[0], tensors, needs);
    for (size_t i = 0; i < Gradients::inputs; i++) result[i] = std::move(found[i]);
    return result;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  // An override where nodes count themselves.
  void release_resources() {
    release_base<Node>(*this);
    for (auto& variable : saved_) variable = torch::autograd::SavedVariable();
  }

  // Compiled autograd: what a compiled backward pass depends on, and one traced through this node's operators.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(std::string(Gradients::name));
    for (const auto& variable : saved_) args.collect(variable, /*is_output=*/true);
    gradients_.each([&](const auto& field) { args.collect(field); });
  }

  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (auto& variable : saved_) swap.before(variable);
    auto result = apply(torch::autograd::variable_list(grads));
    for (auto& variable : saved_) swap.after(variable);
    return result;
  }

 private:
  Gradients gradients_;
  std::array<torch::autograd::SavedVariable, Gradients::saved> saved_;
};

// The output, with a node that knows the inputs' nodes and keeps `saved` for the backward pass.
template <class Gradients>
at::Tensor recorded(at::Tensor output, Gradients gradients, const std::array<at::Tensor, Gradients::inputs>& inputs,
                    const std::array<at::Tensor, Gradients::saved>& saved) {
  torch::autograd::edge_list edges(Gradients::inputs);
  for (size_t i = 0; i < Gradients::inputs; i++) {
    if (!inputs[i].defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(inputs[i]), Gradients::name,
                                ": expected inputs without forward-mode tangents, got one with");
    edges[i] = torch::autograd::impl::gradient_edge(inputs[i]);
  }
  auto* node = new OperatorNode<Gradients>(std::move(gradients), std::move(edges));
  const NodePointer owner = own(node);
  torch::autograd::set_history(output, owner);
  node->save(saved, output);
  return output;
}

}  // namespace pytorch_ext
