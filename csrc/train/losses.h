// The losses at the end of a chain: value and gradient in one pass, with the kernels of the operator of that name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../launch/kernel.h"

namespace pytorch_ext::train {

class Loss {
 public:
  virtual ~Loss() = default;
  // Raises where the target does not fit the prediction; afterwards run() cannot fail for its shape or its dtype.
  virtual void read(const Tensor& prediction, const Tensor& target) = 0;
  // The loss into `value`, one element, and its derivative by the prediction, contiguous, into `gradient`.
  virtual void run(void* value, const Tensor& gradient) = 0;
  // Adds the addresses of its weights; false where the kernels read copies of them that read() has made.
  virtual bool append_weights(std::vector<int64_t>& to) const = 0;
  // Adds itself, with the target that read() was given, to training steps in one launch; false where these do not know
  // it.
  virtual bool add_to(TrainSteps& steps) const = 0;
  // Whether the kernels read the memory of this target itself, which read() was given.
  virtual bool reads(const Tensor& target) const = 0;
  // Lets go of what read() was given.
  virtual void release() = 0;
};

std::unique_ptr<Loss> new_cross_entropy(const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                        double label_smoothing);
std::unique_ptr<Loss> new_nll_loss(const OptionalTensor& weight, int64_t reduction, int64_t ignore_index);
std::unique_ptr<Loss> new_elementwise_loss(const std::string& name, const OptionalTensor& weight,
                                           const OptionalTensor& pos_weight, int64_t reduction);

}  // namespace pytorch_ext::train
