#include "losses.h"

#include "../launch/class_targets.h"
#include "../launch/covers.h"
#include "../launch/elementwise_loss.h"

namespace pytorch_ext::train {
namespace {

bool same_memory(const Tensor& a, const Tensor& b) { return a.const_data_ptr() == b.const_data_ptr(); }

// Whether the kernels read the weight that was given, whose address is added.
bool append_weight(const OptionalTensor& given, const OptionalTensor& read, std::vector<int64_t>& to) {
  if (!given) return true;
  to.push_back(reinterpret_cast<int64_t>(given->const_data_ptr()));
  return same_memory(*given, *read);
}

class ClassificationLossOfChain final : public Loss {
 public:
  ClassificationLossOfChain(const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                            std::optional<double> label_smoothing)
      : weight_(weight), reduction_(reduction), ignore_index_(ignore_index), label_smoothing_(label_smoothing) {}

  void read(const Tensor& prediction, const Tensor& target) override {
    operands_ = class_operands("TrainStep", prediction, target, weight_, reduction_, ignore_index_);
    const bool covered = label_smoothing_ ? covers_cross_entropy(prediction, target, weight_, reduction_, ignore_index_,
                                                                 *label_smoothing_)
                                          : covers_nll_loss(prediction, target, weight_, reduction_, ignore_index_);
    TORCH_CHECK(covered, "TrainStep: expected a target that the loss's kernels take for an output ", prediction.sizes(),
                ", got ", target.sizes(), " of ", target.scalar_type());
  }
  void run(void* value, const Tensor& gradient) override {
    const Tensor& prediction = operands_.input;
    WITH_STORAGE_TYPE("TrainStep", prediction.scalar_type(), [&] {
      ClassificationLoss<S> p =
          label_smoothing_ ? cross_entropy_arguments<S>(operands_, reduction_, ignore_index_, *label_smoothing_)
                           : operands_.loss<S>(reduction_, ignore_index_);
      p.loss = static_cast<S*>(value);
      p.dinput = mutable_data<S>(gradient);
      if (label_smoothing_) return RUN_KERNEL(prediction, cross_entropy<S>)(p);
      gradient.zero_();  // the kernel writes the elements of the targets alone
      RUN_KERNEL(prediction, nll_loss<S>)(p);
    });
  }
  bool append_weights(std::vector<int64_t>& to) const override { return append_weight(weight_, operands_.weight, to); }
  bool add_to(TrainSteps& steps) const override {
    if (!label_smoothing_) return false;
    steps.of_classes = true;
    steps.classes = cross_entropy_arguments<float>(operands_, reduction_, ignore_index_, *label_smoothing_);
    return steps.classes.indices && steps.classes.inner == 1;
  }
  bool reads(const Tensor& target) const override { return same_memory(operands_.target, target); }
  void release() override { operands_.target = Tensor(); }

 private:
  OptionalTensor weight_;
  int64_t reduction_, ignore_index_;
  std::optional<double> label_smoothing_;  // none: of log-probabilities
  ClassOperands operands_;
};

class ElementwiseLossOfChain final : public Loss {
 public:
  ElementwiseLossOfChain(const std::string& name, const OptionalTensor& weight, const OptionalTensor& pos_weight,
                         int64_t reduction)
      : kind_(elementwise_loss_named(name)), weight_(weight), pos_weight_(pos_weight), reduction_(reduction) {}

  void read(const Tensor& prediction, const Tensor& target) override {
    check_same("TrainStep", "target", target, prediction);
    TORCH_CHECK(target.sizes() == prediction.sizes(), "TrainStep: expected target ", prediction.sizes(),
                " as the model's output, got ", target.sizes());
    operands_ = elementwise_operands(prediction, target, weight_, pos_weight_, kind_, reduction_);
  }
  void run(void* value, const Tensor& gradient) override {
    bool valid = true;
    WITH_STORAGE_TYPE("TrainStep", operands_.input.scalar_type(), [&] {
      auto p = operands_.arrays<S>(kind_, reduction_);
      p.value = static_cast<S*>(value);
      p.dinput = mutable_data<S>(gradient);
      valid = RUN_KERNEL(operands_.input, elementwise_loss<S>)(p);
    });
    if (!valid) check_probabilities(operands_.input, operands_.target);
  }
  bool add_to(TrainSteps& steps) const override {
    steps.of_classes = false;
    steps.elementwise = operands_.arrays<float>(kind_, reduction_);
    return !operands_.weight && !operands_.pos_weight;
  }
  bool append_weights(std::vector<int64_t>& to) const override {
    return append_weight(weight_, operands_.weight, to) && append_weight(pos_weight_, operands_.pos_weight, to) &&
           (!operands_.mean_weight || append_weight(weight_, operands_.mean_weight, to));
  }
  bool reads(const Tensor& target) const override { return same_memory(operands_.target, target); }
  void release() override { operands_.target = Tensor(); }

 private:
  ElementwiseLoss kind_;
  OptionalTensor weight_, pos_weight_;
  int64_t reduction_;
  ElementwiseOperands operands_;
};

}  // namespace

std::unique_ptr<Loss> new_cross_entropy(const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                        double label_smoothing) {
  return std::make_unique<ClassificationLossOfChain>(weight, reduction, ignore_index, label_smoothing);
}
std::unique_ptr<Loss> new_nll_loss(const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
  return std::make_unique<ClassificationLossOfChain>(weight, reduction, ignore_index, std::nullopt);
}
std::unique_ptr<Loss> new_elementwise_loss(const std::string& name, const OptionalTensor& weight,
                                           const OptionalTensor& pos_weight, int64_t reduction) {
  return std::make_unique<ElementwiseLossOfChain>(name, weight, pos_weight, reduction);
}

}  // namespace pytorch_ext::train
