#include "layers.h"

#include <ATen/InferSize.h>
#include <ATen/WrapDimUtils.h>

#include "../cpu/activation.h"
#include "../cpu/linear.h"
#include "../cpu/product.h"
#include "../cpu/softmax.h"
#include "../launch/activation_names.h"
#include "../launch/dropout.h"
#include "../launch/row_shape.h"

namespace pytorch_ext::train {

void* Buffer::get(int64_t count, const Tensor& like, std::optional<at::ScalarType> dtype) {
  if (!storage_.defined() || storage_.numel() < count || storage_.scalar_type() != dtype.value_or(like.scalar_type()))
    storage_ = empty({count}, like, dtype);
  return storage_.mutable_data_ptr();
}

namespace {

class Linear final : public Layer {
 public:
  Linear(Weight* weight, Weight* bias, const std::string& activation)
      : weight_(weight), bias_(bias), kind_(activation_named("linear", activation)) {}

  bool has_gradients() const override { return weight_->gradient.defined() || (bias_ && bias_->gradient.defined()); }
  const char* name() const override { return "Linear"; }
  bool add_to(TrainSteps& steps, int64_t rows) const override {
    const Tensor& w = weight_->value;
    if (rows != rows_ || steps.layers == TrainSteps::most_layers || w.numel() == 0 || w.numel() > INT32_MAX)
      return false;
    StepLayer& layer = steps.layer[steps.layers++];
    layer.inputs = static_cast<int>(w.size(1)), layer.outputs = static_cast<int>(w.size(0));
    layer.activation = kind_;
    layer.weight.value = mutable_data<float>(w);
    if (bias_) layer.bias.value = mutable_data<float>(bias_->value);
    return true;
  }

  at::DimVector plan(at::IntArrayRef sizes) override {
    const Tensor& w = weight_->value;
    TORCH_CHECK(!sizes.empty() && sizes.back() == w.size(1), "TrainStep: expected an input (..., ", w.size(1),
                ") of the layer Linear(", w.size(1), ", ", w.size(0), "), got ", sizes);
    rows_ = c10::multiply_integers(sizes.begin(), sizes.end() - 1);
    at::DimVector out(sizes);
    out.back() = w.size(0);
    y_ = output_.get(rows_ * w.size(0), w);
    z_ = saves_input(kind_) ? preactivation_.get(rows_ * w.size(0), w) : nullptr;
    dx_ = nullptr;
    output = output_.view(out);
    return out;
  }

  const void* forward(const void* input) override {
    const Tensor& w = weight_->value;
    const int64_t N = w.size(0), K = w.size(1);
    WITH_STORAGE_TYPE("TrainStep", w.scalar_type(), [&] {
      Product<S> p{rows_,
                   N,
                   K,
                   {static_cast<const S*>(input), K, 1},
                   {data<S>(w), w.stride(1), w.stride(0)},
                   static_cast<S*>(y_),
                   N};
      if (bias_) p.bias = data<S>(bias_->value);
      p.activation = kind_;
      p.preactivation = static_cast<S*>(z_);
      RUN_KERNEL(w, product<S>)(p);
    });
    return y_;
  }

  void* backward(const void* input, void* grad, bool wants_input) override {
    const Tensor& w = weight_->value;
    const int64_t N = w.size(0), K = w.size(1);
    if (wants_input && !dx_) dx_ = input_gradient_.get(rows_ * K, w);
    WITH_STORAGE_TYPE("TrainStep", w.scalar_type(), [&] {
      S* dz = static_cast<S*>(grad);
      const bool sums = bias_ && bias_->gradient.defined();
      if (kind_ != Activation::none || sums) {
        LinearGradient<S> p{rows_, N, dz, N, 1};
        p.activation = kind_;
        if (sums) p.dbias = mutable_data<S>(bias_->gradient);
        if (kind_ != Activation::none) {
          p.saved = static_cast<const S*>(saves_input(kind_) ? z_ : y_);
          p.dz = dz;
        }
        RUN_KERNEL(w, linear_gradient<S>)(p);
      }
      if (wants_input) RUN_KERNEL(w, product<S>)
      (Product<S>{rows_, K, N, {dz, N, 1}, {data<S>(w), w.stride(0), w.stride(1)}, static_cast<S*>(dx_), K});
      if (weight_->gradient.defined()) RUN_KERNEL(w, product<S>)
      (Product<S>{
          N, K, rows_, {dz, 1, N}, {static_cast<const S*>(input), K, 1}, mutable_data<S>(weight_->gradient), K});
    });
    return dx_;
  }

 private:
  Weight *weight_, *bias_;
  Activation kind_;
  int64_t rows_ = 0;
  Buffer &output_ = memory_[0], &preactivation_ = memory_[1], &input_gradient_ = memory_[2];
  void *y_ = nullptr, *z_ = nullptr, *dx_ = nullptr;
};

// A layer without weights whose output has the sizes of its input.
class Elementwise : public Layer {
 public:
  at::DimVector plan(at::IntArrayRef sizes) override {
    count_ = c10::multiply_integers(sizes);
    y_ = output_.get(count_, like_);
    output = output_.view(sizes);
    return at::DimVector(sizes);
  }

 protected:
  int64_t count_ = 0;
  void* y_ = nullptr;

 private:
  Buffer& output_ = memory_[0];
};

class ActivationLayer final : public Elementwise {
 public:
  explicit ActivationLayer(const std::string& name) : kind_(activation_named("activation", name)) {}
  const char* name() const override { return "activation that no Linear comes before"; }

  const void* forward(const void* input) override {
    WITH_STORAGE_TYPE("TrainStep", like_.scalar_type(), [&] {
      RUN_KERNEL(like_, activation<S>)(kind_, count_, static_cast<const S*>(input), static_cast<S*>(y_));
    });
    return y_;
  }
  void* backward(const void* input, void* grad, bool) override {
    WITH_STORAGE_TYPE("TrainStep", like_.scalar_type(), [&] {
      const S* saved = static_cast<const S*>(saves_input(kind_) ? input : y_);
      S* g = static_cast<S*>(grad);
      RUN_KERNEL(like_, activation_gradient<S>)(kind_, count_, g, saved, g);
    });
    return grad;
  }

 private:
  Activation kind_;
};

class DropoutLayer final : public Elementwise {
 public:
  explicit DropoutLayer(double p) : p_(p) {}
  const char* name() const override { return "Dropout"; }

  void draw(GraphArguments* arguments) override {
    key_ = new_dropout_key();
    key_at_ = arguments ? arguments->add(key_) : nullptr;
  }
  const void* forward(const void* input) override {
    run(input, y_);
    return y_;
  }
  void* backward(const void*, void* grad, bool) override {
    run(grad, grad);
    return grad;
  }

 private:
  void run(const void* x, void* y) {
    WITH_STORAGE_TYPE("TrainStep", like_.scalar_type(), [&] {
      auto p = dropout_arguments<S>(count_, static_cast<const S*>(x), static_cast<S*>(y), p_, key_);
      p.key_at = key_at_;
      RUN_KERNEL(like_, dropout<S>)(p);
    });
  }
  double p_;
  uint64_t key_ = 0;
  const uint64_t* key_at_ = nullptr;
};

class SoftmaxLayer final : public Elementwise {
 public:
  SoftmaxLayer(int64_t dim, bool logarithm) : dim_(dim), logarithm_(logarithm) {}
  const char* name() const override { return logarithm_ ? "LogSoftmax" : "Softmax"; }

  at::DimVector plan(at::IntArrayRef sizes) override {
    shape_ = RowShape(sizes, dim_);
    return Elementwise::plan(sizes);
  }
  const void* forward(const void* input) override {
    WITH_STORAGE_TYPE("TrainStep", like_.scalar_type(), [&] {
      RUN_KERNEL(like_, softmax<S>)
      (Softmax<S>{shape_.outer, shape_.columns, shape_.inner, static_cast<const S*>(input),
                  shape_.columns * shape_.inner, static_cast<S*>(y_), logarithm_});
    });
    return y_;
  }
  void* backward(const void*, void* grad, bool) override {
    void* dx = input_gradient_.get(count_, like_);  // the kernel reads a row's gradients twice
    WITH_STORAGE_TYPE("TrainStep", like_.scalar_type(), [&] {
      RUN_KERNEL(like_, softmax_gradient<S>)
      (SoftmaxGradient<S>{shape_.outer, shape_.columns, shape_.inner, static_cast<const S*>(grad),
                          static_cast<const S*>(y_), static_cast<S*>(dx), logarithm_});
    });
    return dx;
  }

 private:
  int64_t dim_;
  bool logarithm_;
  RowShape shape_;
  Buffer& input_gradient_ = memory_[1];
};

// Another shape of the same elements.
class PassThrough : public Layer {
 public:
  const char* name() const final { return "reshape"; }
  bool add_to(TrainSteps&, int64_t) const final { return true; }
  const void* forward(const void* input) final { return input; }
  void* backward(const void*, void* grad, bool) final { return grad; }
};

class Flatten final : public PassThrough {
 public:
  Flatten(int64_t start, int64_t end) : start_(start), end_(end) {}

  at::DimVector plan(at::IntArrayRef sizes) override {
    const auto dims = static_cast<int64_t>(sizes.size());
    const int64_t start = at::maybe_wrap_dim(start_, dims), end = at::maybe_wrap_dim(end_, dims);
    TORCH_CHECK(start <= end, "TrainStep: expected flatten() of increasing dimensions, got ", start_, " and ", end_);
    at::DimVector out(sizes.slice(0, start));
    out.push_back(dims ? c10::multiply_integers(sizes.begin() + start, sizes.begin() + end + 1) : 1);
    for (int64_t d = end + 1; d < dims; d++) out.push_back(sizes[d]);
    return out;
  }

 private:
  int64_t start_, end_;
};

class Reshape final : public PassThrough {
 public:
  explicit Reshape(at::IntArrayRef sizes) : sizes_(sizes) {}
  at::DimVector plan(at::IntArrayRef sizes) override {
    return at::infer_size_dv(sizes_, c10::multiply_integers(sizes));
  }

 private:
  at::DimVector sizes_;
};

class Squeeze final : public PassThrough {
 public:
  explicit Squeeze(int64_t dim) : dim_(dim) {}
  at::DimVector plan(at::IntArrayRef sizes) override {
    at::DimVector out(sizes);
    const int64_t dim = at::maybe_wrap_dim(dim_, static_cast<int64_t>(sizes.size()));
    if (dim < static_cast<int64_t>(sizes.size()) && sizes[dim] == 1) out.erase(out.begin() + dim);
    return out;
  }

 private:
  int64_t dim_;
};

}  // namespace

std::unique_ptr<Layer> new_linear(Weight* weight, Weight* bias, const std::string& activation) {
  return std::make_unique<Linear>(weight, bias, activation);
}
std::unique_ptr<Layer> new_activation(const std::string& name) { return std::make_unique<ActivationLayer>(name); }
std::unique_ptr<Layer> new_dropout(double p) { return std::make_unique<DropoutLayer>(p); }
std::unique_ptr<Layer> new_softmax(int64_t dim, bool logarithm) {
  return std::make_unique<SoftmaxLayer>(dim, logarithm);
}
std::unique_ptr<Layer> new_flatten(int64_t start, int64_t end) { return std::make_unique<Flatten>(start, end); }
std::unique_ptr<Layer> new_reshape(at::IntArrayRef sizes) { return std::make_unique<Reshape>(sizes); }

std::unique_ptr<Layer> new_squeeze(int64_t dim) { return std::make_unique<Squeeze>(dim); }

}  // namespace pytorch_ext::train
