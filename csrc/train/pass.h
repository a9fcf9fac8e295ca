// Forward pass, loss and backward pass of a batch, over memory that is kept from batch to batch.
#pragma once

#include "chain.h"
#include "graphs.h"
#include "losses.h"

namespace pytorch_ext::train {

// What follows the backward pass of a batch.
class Ending {
 public:
  virtual ~Ending() = default;
  // Adds all that its launches depend on, to the key what they have as arguments of their own; false where there is no
  // room among those of a graph.
  virtual bool add_to(GraphArguments& arguments, LaunchKey& key) = 0;
  // Its launches; `recorded`: for a graph, with what add_to() has added.
  virtual void launch(bool recorded) = 0;
};

class Pass {
 public:
  // `chain` outlives this.
  Pass(Chain& chain, std::unique_ptr<Loss> loss) : chain_(chain), loss_(std::move(loss)) {}

  bool is_planned(at::IntArrayRef sizes) const { return is_planned_ && at::IntArrayRef(planned_) == sizes; }
  // Takes inputs of these sizes from now on, and the gradients that there are memory for now. Raises where they do not
  // fit.
  void plan(at::IntArrayRef sizes);
  // What was planned is no longer true: the layers are others.
  void forget_plan();
  // True, having let go of all memory, where that of the last call was of another dtype, on another device, or for
  // another current stream or capture there: torch's allocator would hand memory on in the order of the other stream.
  bool has_moved();

  // Raises where the target does not fit the prediction; afterwards run() cannot fail for its shape or its dtype.
  void read(const Tensor& target) { loss_->read(memory_.prediction, target); }
  // The loss into `loss`, the gradients where the chain has them. Needs no GIL.
  void run(const Tensor& input, const Tensor& loss);
  // The same on a device, and what follows; true where a graph did all of it.
  bool run(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending);
  // Training steps in one launch for batches of `rows` rows as planned and read; why that cannot be, or nothing.
  std::string add_to(TrainSteps& steps, int64_t rows) const;
  // Lets go of what was read.
  void release() { loss_->release(); }
  // Whether work sent to the current stream, as has_moved() saw it, is recorded by the user.
  bool is_captured() const { return capture_; }
  bool reads(const Tensor& target) const { return loss_->reads(target); }
  // Whether it takes longer than to let other threads have the GIL.
  bool is_long() const { return is_long_; }

 private:
  void draw(GraphArguments* arguments);
  void launch(const Tensor& input, const Tensor& loss);
  void prepare(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending);
  bool repeat(const Tensor& input, const Tensor& target, const Tensor& loss, Ending& ending);
  bool identify(const Tensor& target, LaunchKey& key) const;
  bool add_to(GraphArguments& arguments, LaunchKey& key, Ending& ending);

  Chain& chain_;
  std::unique_ptr<Loss> loss_;

  at::DimVector planned_;
  bool is_planned_ = false, is_long_ = true;
  std::vector<const void*> inputs_;
  size_t first_trained_ = 0;

  // All memory but the layers' own.
  struct Memory {
    Tensor prediction, gradient;  // of the prediction
    Buffer prediction_gradient;
    KeptWorkspaces workspaces;
    Buffer input, target, loss, arguments;  // where graphs have them
  };
  Memory memory_;
  Graphs graphs_;
  at::ScalarType dtype_ = at::ScalarType::Undefined;
  at::Device device_ = at::kCPU;
  std::optional<c10::Stream> stream_;
  int64_t capture_ = 0;
};

}  // namespace pytorch_ext::train
