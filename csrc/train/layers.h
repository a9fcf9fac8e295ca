// The layers of a chain over memory that is kept from step to step: each knows its forward and its backward, with the
// kernels and so the bits of the operator of its name.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "../cuda/graph_arguments.h"
#include "../launch/kernel.h"

namespace pytorch_ext::train {

// Memory that grows where a larger batch comes.
class Buffer {
 public:
  // For `count` elements of that dtype, or that of `like`, on its device; what was in it is lost where it grows.
  void* get(int64_t count, const Tensor& like, std::optional<at::ScalarType> dtype = std::nullopt);
  Tensor view(at::IntArrayRef sizes) const { return storage_.narrow(0, 0, c10::multiply_integers(sizes)).view(sizes); }
  // The same memory as a tensor of the sizes and the dtype of `like`.
  Tensor get_like(const Tensor& like) { return get(like.numel(), like), view(like.sizes()); }
  int64_t address() const { return storage_.defined() ? reinterpret_cast<int64_t>(storage_.const_data_ptr()) : 0; }

 private:
  Tensor storage_;
};

// A weight or a bias, and the memory of its gradient.
struct Weight {
  Tensor value;
  Tensor gradient;  // undefined where none is wanted
};

class Layer {
 public:
  virtual ~Layer() = default;
  // Takes inputs of these sizes from now on; the sizes of the output. Raises where they do not fit.
  virtual at::DimVector plan(at::IntArrayRef sizes) = 0;
  // Whether the backward pass must go on to the layers before this one; known before plan().
  virtual bool has_gradients() const { return false; }
  // Draws what is new in every step: at most one number, which forward() and backward() find among the arguments of a
  // graph where they are repeated from one, else null.
  virtual void draw(GraphArguments* /*arguments*/) {}
  virtual const void* forward(const void* input) = 0;
  // From dL/d(output), which the layer may overwrite, to the gradients of its weights and, where wanted, of its input.
  virtual void* backward(const void* input, void* grad, bool wants_input) = 0;
  // Adds itself to training steps in one launch; false where these do not know it.
  virtual bool add_to(TrainSteps& /*steps*/, int64_t /*rows*/) const { return false; }
  virtual const char* name() const = 0;
  // Its dtype and device are those of the whole chain.
  void set_reference(const Tensor& like) { like_ = like; }
  // All memory of its own that its launches may have as arguments.
  const std::array<Buffer, 3>& memory() const { return memory_; }

  Tensor output;  // after plan(); undefined where the layer hands its input on

 protected:
  Tensor like_;
  std::array<Buffer, 3> memory_;
};

std::unique_ptr<Layer> new_linear(Weight* weight, Weight* bias, const std::string& activation);
std::unique_ptr<Layer> new_activation(const std::string& name);
std::unique_ptr<Layer> new_dropout(double p);
std::unique_ptr<Layer> new_softmax(int64_t dim, bool logarithm);
std::unique_ptr<Layer> new_flatten(int64_t start, int64_t end);
std::unique_ptr<Layer> new_reshape(at::IntArrayRef sizes);
std::unique_ptr<Layer> new_squeeze(int64_t dim);

}  // namespace pytorch_ext::train
