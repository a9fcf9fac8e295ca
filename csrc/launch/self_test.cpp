// The self-test: whether the kernels, on the instruction set in use or on a device, compute what the specification
// says.
#include "self_test.h"

#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "../cpu/elementwise.h"
#include "../numerics/coefficients.h"
#include "kernel.h"

namespace pytorch_ext {
namespace {

// ---- inputs, made of integers, and the hash of a result -------------------------------------------------------------

uint32_t scrambled(int64_t i) { return static_cast<uint32_t>(i) * 2654435761u; }

Tensor floats(int64_t count) { return at::empty({count}, at::device(at::kCPU).dtype(at::kFloat)); }

// Exact multiples of 2^-10 in [-32, 32).
Tensor numbers(int64_t first, int64_t count, at::Device device) {
  Tensor x = floats(count);
  for (int64_t i = 0; i < count; i++)
    mutable_data<float>(x)[i] = static_cast<float>(static_cast<int32_t>(scrambled(first + i) >> 16) - 32768) * 0x1p-10f;
  return x.to(device);
}

// A thousand numbers, then as many bit patterns: subnormals, infinities and NaN among them.
Tensor patterns(at::Device device, bool nonpositive) {
  constexpr int64_t count = 1000;
  Tensor x = floats(2 * count);
  float* at = mutable_data<float>(x);
  std::memcpy(at, data<float>(numbers(1, count, at::kCPU)), count * sizeof(float));
  for (int64_t i = 0; i < count; i++) {
    const uint32_t word = i < 8 ? 0x7f7ffffeu + static_cast<uint32_t>(i) : scrambled(i);
    std::memcpy(at + count + i, &word, sizeof word);
  }
  if (nonpositive)
    for (int64_t i = 0; i < 2 * count; i++) at[i] = at[i] > 0 ? -at[i] : at[i];
  return x.to(device);
}

// FNV-1a over the words of the floats; NaN counts by its position alone.
uint64_t hash(const Tensor& result) {
  const Tensor x = result.cpu();
  uint64_t h = 0xcbf29ce484222325u;
  for (int64_t i = 0; i < x.numel(); i++) {
    uint32_t word;
    std::memcpy(&word, data<float>(x) + i, sizeof word);
    if ((word & 0x7fffffffu) > 0x7f800000u) word = 0x7fc00000u;
    h = (h ^ word) * 0x100000001b3u;
  }
  return h;
}

// ---- what is computed -----------------------------------------------------------------------------------------------

Tensor run_function(Function f, at::Device device) {
  Tensor x = patterns(device, f == Function::exp_nonpositive);
  RUN_KERNEL(x, apply_function<float>)(f, x.numel(), data<float>(x), mutable_data<float>(x));
  return x;
}

Tensor run_product(at::Device device) {  // 5 x 7 over 300: two chunks
  const Tensor a = numbers(1, 1500, device), b = numbers(5000, 2100, device), c = at::zeros({35}, a.options());
  RUN_KERNEL(a, product<float>)
  (Product<float>{5, 7, 300, {data<float>(a), 300, 1}, {data<float>(b), 7, 1}, mutable_data<float>(c), 7});
  return c;
}

Tensor run_sum(at::Device device) {  // a row of two segments, and five columns
  const Tensor x = numbers(1, 5000, device), y = at::zeros({6}, x.options());
  float* at = mutable_data<float>(y);
  RUN_KERNEL(x, sum_slices<float>)(SliceSum<float>{1, 5000, 1, data<float>(x), 5000, 1, 1, at});
  RUN_KERNEL(x, sum_slices<float>)(SliceSum<float>{1, 1000, 5, data<float>(x), 5000, 5, 1, at + 1});
  return y;
}

Tensor run_softmax(at::Device device) {  // rows of 40, then a logarithm over two segments
  const Tensor x = numbers(1, 5000, device), y = at::zeros({10000}, x.options());
  float* at = mutable_data<float>(y);
  RUN_KERNEL(x, softmax<float>)(Softmax<float>{125, 40, 1, data<float>(x), 40, at, false});
  RUN_KERNEL(x, softmax<float>)(Softmax<float>{1, 5000, 1, data<float>(x), 5000, at + 5000, true});
  return y;
}

Tensor run_norm(at::Device device) {  // mul, then add: a contracted kernel differs here
  const Tensor x = numbers(1, 5000, device), norm = at::zeros({1}, x.options());
  float* at = mutable_data<float>(x);
  const GradTensor<float> tensors[] = {{4500, at}, {500, at + 4500}};
  RUN_KERNEL(x, gradient_norm<float>)(tensors, 2, mutable_data<float>(norm));
  return norm;
}

Tensor run_sgd(at::Device device) {
  const Tensor param = numbers(1, 77, device), grad = numbers(1000, 77, device), buffer = at::zeros_like(param);
  const auto rule = sgd_rule<float>(0.1, 0.9, 0.3, 0.01, true, false);
  for (bool first : {true, false, false}) {
    const SgdTensor<float> tensor{77, mutable_data<float>(param), data<float>(grad), mutable_data<float>(buffer),
                                  first};
    RUN_KERNEL(param, sgd_step<float>)(rule, &tensor, 1);
  }
  return param;
}

Tensor run_adam(at::Device device) {
  const Tensor param = numbers(1, 77, device), grad = numbers(1000, 77, device);
  const Tensor m = at::zeros_like(param), v = at::zeros_like(param), v_max = at::zeros_like(param);
  const auto rule = adam_rule<float>(0.01, 0.9, 0.99, 1e-8, 0.01, false, true, true);
  for (int64_t step = 1; step <= 3; step++) {
    const auto factors = adam_step_factors(0.01, 0.9, 0.99, step);
    const AdamTensor<float> tensor{77,
                                   mutable_data<float>(param),
                                   data<float>(grad),
                                   mutable_data<float>(m),
                                   mutable_data<float>(v),
                                   mutable_data<float>(v_max),
                                   float(factors.negative_step_size),
                                   float(factors.scale)};
    RUN_KERNEL(param, adam_step<float>)(rule, &tensor, 1);
  }
  return param;
}

// What the specification gives; tests/test_numerics.py computes them anew.
const std::map<std::string, uint64_t> EXPECTED = {
    {"exp", 0x94ae9036868193ffu},  {"exp_nonpositive", 0x3ef71107ca903f36u},
    {"log", 0xb032e10469b982a1u},  {"log1p", 0xcd69b66b25b3643au},
    {"tanh", 0x265abade782c5b8bu}, {"sigmoid", 0xdc126ad4a02e85ffu},
    {"erf", 0xd0715dee68676beeu},  {"product", 0xf45679e0a2c7116fu},
    {"sum", 0xf609bec9bb6a4cbdu},  {"softmax", 0xdbee3e946328a30cu},
    {"norm", 0x0eac3db31be9e95fu}, {"sgd", 0xd3c6e9f6c227cd06u},
    {"adam", 0x1c9a56fe68254f9fu},
};

// Whether a * b + c was compiled into one operation, in the code that derives the optimisers' coefficients.
bool is_contracted() {
  volatile double a = 1 + 0x1p-30, b = 1 - 0x1p-30, c = -1;
  const double x = a, y = b, z = c;
  return x * y + z != 0;  // 1 - 2^-60 rounds to 1
}

// ---- devices --------------------------------------------------------------------------------------------------------

enum State : int { unknown, passed, failed };
constexpr int MOST_DEVICES = 64;
std::atomic<int> states[MOST_DEVICES];
std::mutex tests_run;

}  // namespace

// Hashes of what is computed on a device, by name.
std::map<std::string, uint64_t> self_test_hashes(at::Device device) {
  // Whatever mode the caller is in, this is plain arithmetic.
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  std::map<std::string, uint64_t> found;
  int f = 0;
  for (const char* name : FUNCTION_NAMES) found[name] = hash(run_function(static_cast<Function>(f++), device));
  found["product"] = hash(run_product(device));
  found["sum"] = hash(run_sum(device));
  found["softmax"] = hash(run_softmax(device));
  found["norm"] = hash(run_norm(device));
  found["sgd"] = hash(run_sgd(device));
  found["adam"] = hash(run_adam(device));
  return found;
}

std::string self_test(at::Device device) {
  if (is_contracted()) return "contraction";
  for (const auto& [name, value] : self_test_hashes(device))
    if (EXPECTED.at(name) != value) return name;
  return "";
}

bool has_kernels(const Tensor& t) {
  if (t.is_cpu()) return true;
#if defined(PYTORCH_EXT_CUDA)
  if (!t.is_cuda() || t.device().index() >= MOST_DEVICES) return false;
  std::atomic<int>& state = states[t.device().index()];
  if (state == unknown) {
    if (is_capturing(t)) return true;  // the test waits for its results, which a graph being recorded forbids
    std::lock_guard<std::mutex> lock(tests_run);
    if (state == unknown) {
      std::string problem;
      try {
        problem = self_test(t.device());
        if (!problem.empty()) problem += " differs from the specification";
      } catch (const c10::Error& error) {
        problem = error.what_without_backtrace();
      }
      state = problem.empty() ? passed : failed;
      if (!problem.empty())
        TORCH_WARN("pytorch_ext: the kernels are not used on ", t.device(), ", stock operators are: ", problem);
    }
  }
  return state == passed;
#else
  return false;
#endif
}

}  // namespace pytorch_ext
