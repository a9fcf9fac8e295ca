// The gradients of several batches, added up for one update.
#pragma once

#include <vector>

#include "chain.h"
#include "graphs.h"

namespace pytorch_ext::train {

class GradientSums {
 public:
  // `chain` outlives this.
  GradientSums(Chain& chain, int64_t batches_of_a_step) : chain_(chain), batches_of_a_step_(batches_of_a_step) {}

  bool are_needed() const { return batches_of_a_step_ > 1; }
  // Whether the next batch is the last one of a step.
  bool completes_next() const { return counted() + 1 >= batches_of_a_step_; }
  bool is_complete() const { return batches_ >= batches_of_a_step_; }
  // The update was made.
  void restart() { batches_ = 0; }

  // Before a batch. Afterwards batches of an update that has raised count no more.
  void begin() { batches_ = counted(); }
  // Whether the step has a sum for that slot of the chain: then its parameter is updated, frozen or not.
  bool has(size_t slot) const { return batches_ > 0 && slot < sums_.size() && sums_[slot].has_begun; }
  // Keeps what is of the chain's dtype and device, for its current stream.
  void move();
  // Adds all that the launches depend on.
  void add_to(LaunchKey& key) const;
  // Adds the gradients of the batch; those of the last one become the sums, where the optimiser looks.
  void launch();
  // Behind the launches, by whomever they were sent.
  void launched();

 private:
  struct Sum {
    Tensor value;
    bool has_begun = false;
  };
  int64_t counted() const { return is_complete() ? 0 : batches_; }

  Chain& chain_;
  int64_t batches_of_a_step_, batches_ = 0;
  std::vector<Sum> sums_;  // by slot
};

}  // namespace pytorch_ext::train
