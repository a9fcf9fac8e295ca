// The functions of the contract over a tensor, and a self-test: whether this build, on the instruction set in use,
// computes what the specification says.
#include "functions.h"

#include <torch/csrc/autograd/python_variable.h>

#include <map>
#include <string>
#include <vector>

#include "../cpu/elementwise.h"
#include "../cpu/optimizers.h"
#include "../cpu/product.h"
#include "../cpu/reduce.h"
#include "../numerics/coefficients.h"
#include "tensors.h"

namespace pytorch_ext {
namespace {

const char* const FUNCTION_NAMES[] = {"exp", "exp_nonpositive", "log", "log1p", "tanh", "sigmoid", "erf"};

Tensor apply_named(const std::string& name, const Tensor& input) {
  for (int f = 0; f < 7; f++)
    if (name == FUNCTION_NAMES[f]) {
      TORCH_CHECK(
          input.is_cpu() && input.is_contiguous() && (input.dtype() == at::kFloat || input.dtype() == at::kDouble),
          "apply_function: expected a contiguous float32 or float64 tensor on the CPU, got ", input.dtype());
      Tensor output = empty(input.sizes(), input);
      const auto function = static_cast<Function>(f);
      if (input.dtype() == at::kFloat)
        CPU_KERNEL(apply_function<float>)(function, input.numel(), data<float>(input), mutable_data<float>(output));
      else
        CPU_KERNEL(apply_function<double>)(function, input.numel(), data<double>(input), mutable_data<double>(output));
      return output;
    }
  throw pybind11::value_error("apply_function: expected a function of the contract, got " + name);
}

// ---- the self-test: hashes of results on inputs made of integers ----------------------------------------------------

using Floats = std::vector<float>;

uint32_t scrambled(int64_t i) { return static_cast<uint32_t>(i) * 2654435761u; }

// Exact multiples of 2^-10 in [-32, 32).
Floats numbers(int64_t first, int64_t count) {
  Floats x;
  for (int64_t i = first; i < first + count; i++)
    x.push_back(static_cast<float>(static_cast<int32_t>(scrambled(i) >> 16) - 32768) * 0x1p-10f);
  return x;
}

// As many numbers as any bit patterns: subnormals, infinities and NaN among them.
Floats patterns(int64_t count) {
  Floats x = numbers(1, count);
  for (int64_t i = 0; i < count; i++) {
    uint32_t word = i < 8 ? 0x7f7ffffeu + static_cast<uint32_t>(i) : scrambled(i);
    float value;
    std::memcpy(&value, &word, sizeof value);
    x.push_back(value);
  }
  return x;
}

// FNV-1a over the words of the floats; NaN counts by its position alone.
uint64_t hash(const Floats& x) {
  uint64_t h = 0xcbf29ce484222325u;
  for (float value : x) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffffu) > 0x7f800000u) word = 0x7fc00000u;
    h = (h ^ word) * 0x100000001b3u;
  }
  return h;
}

Floats run_function(Function f) {
  Floats x = patterns(1000);
  if (f == Function::exp_nonpositive)
    for (float& value : x) value = value > 0 ? -value : value;
  CPU_KERNEL(apply_function<float>)(f, static_cast<int64_t>(x.size()), x.data(), x.data());
  return x;
}

Floats run_product() {  // 5 x 7 over 300: two chunks
  Floats a = numbers(1, 1500), b = numbers(5000, 2100), c(35);
  CPU_KERNEL(product<float>)(Product<float>{5, 7, 300, {a.data(), 300, 1}, {b.data(), 7, 1}, c.data(), 7});
  return c;
}

Floats run_sum() {  // a row of two segments, and five columns
  Floats x = numbers(1, 5000), y(6);
  CPU_KERNEL(sum_slices<float>)(SliceSum<float>{1, 5000, 1, x.data(), 5000, 1, 1, y.data()});
  CPU_KERNEL(sum_slices<float>)(SliceSum<float>{1, 1000, 5, x.data(), 5000, 5, 1, y.data() + 1});
  return y;
}

Floats run_norm() {  // mul, then add: a contracted kernel differs here
  Floats x = numbers(1, 5000);
  const GradTensor<float> tensors[] = {{4500, x.data()}, {500, x.data() + 4500}};
  return {CPU_KERNEL(gradient_norm<float>)(tensors, 2)};
}

Floats run_sgd() {
  Floats param = numbers(1, 77), grad = numbers(1000, 77), buffer(77);
  const auto rule = sgd_rule<float>(0.1, 0.9, 0.3, 0.01, true, false);
  for (bool first : {true, false, false}) {
    const SgdTensor<float> tensor{77, param.data(), grad.data(), buffer.data(), first};
    CPU_KERNEL(sgd_step<float>)(rule, &tensor, 1);
  }
  return param;
}

Floats run_adam() {
  Floats param = numbers(1, 77), grad = numbers(1000, 77), m(77), v(77), v_max(77);
  const auto rule = adam_rule<float>(0.01, 0.9, 0.99, 1e-8, 0.01, false, true, true);
  for (int64_t step = 1; step <= 3; step++) {
    const auto factors = adam_step_factors(0.01, 0.9, 0.99, step);
    const AdamTensor<float> tensor{77,
                                   param.data(),
                                   grad.data(),
                                   m.data(),
                                   v.data(),
                                   v_max.data(),
                                   float(factors.negative_step_size),
                                   float(factors.scale)};
    CPU_KERNEL(adam_step<float>)(rule, &tensor, 1);
  }
  return param;
}

// Hashes of what this build computes, by name.
std::map<std::string, uint64_t> self_test_hashes() {
  std::map<std::string, uint64_t> found;
  for (int f = 0; f < 7; f++) found[FUNCTION_NAMES[f]] = hash(run_function(static_cast<Function>(f)));
  found["product"] = hash(run_product());
  found["sum"] = hash(run_sum());
  found["norm"] = hash(run_norm());
  found["sgd"] = hash(run_sgd());
  found["adam"] = hash(run_adam());
  return found;
}

// What the specification gives; tests/test_numerics.py computes them anew.
const std::map<std::string, uint64_t> EXPECTED = {
    {"exp", 0x94ae9036868193ffu},  {"exp_nonpositive", 0x3ef71107ca903f36u},
    {"log", 0xb032e10469b982a1u},  {"log1p", 0xcd69b66b25b3643au},
    {"tanh", 0x265abade782c5b8bu}, {"sigmoid", 0xdc126ad4a02e85ffu},
    {"erf", 0xd0715dee68676beeu},  {"product", 0xf45679e0a2c7116fu},
    {"sum", 0xf609bec9bb6a4cbdu},  {"norm", 0x0eac3db31be9e95fu},
    {"sgd", 0xd3c6e9f6c227cd06u},  {"adam", 0x1c9a56fe68254f9fu},
};

// Whether a * b + c was compiled into one operation, in the code that derives the optimisers' coefficients.
bool is_contracted() {
  volatile double a = 1 + 0x1p-30, b = 1 - 0x1p-30, c = -1;
  const double x = a, y = b, z = c;
  return x * y + z != 0;  // 1 - 2^-60 rounds to 1
}

// The name of the first result that differs; empty where none does.
std::string self_test() {
  if (is_contracted()) return "contraction";
  for (const auto& [name, value] : self_test_hashes())
    if (EXPECTED.at(name) != value) return name;
  return "";
}

}  // namespace

void define_functions(pybind11::module_& m) {
  m.def("apply_function", &apply_named);
  m.def("self_test", &self_test);
  m.def("self_test_hashes", &self_test_hashes);
}

}  // namespace pytorch_ext
