// Largest error of every function of csrc/numerics/functions.h over every float32 input, against libm in double.
// g++ -std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fopenmp tests/scan_functions.cpp -o scan &&
// ./scan
#include <cfloat>
#include <cstdio>

#include "../csrc/numerics/functions.h"

namespace numerics = pytorch_ext::PYTORCH_EXT_ISA;
using numerics::FloatV;

namespace {

struct Worst {
  double error = 0;  // in units in the last place of the exact result
  float input = 0;
  int64_t wrong = 0;  // NaN, infinity or sign other than the exact result's
};

double last_place(double exact) {
  if (std::fabs(exact) < FLT_MIN) return 0x1p-149;
  int exponent;
  std::frexp(exact, &exponent);
  return std::ldexp(1.0, exponent - 24);
}

void compare(float x, float y, double exact, Worst& worst) {
  float rounded = static_cast<float>(exact);
  if (std::isnan(rounded) || std::isinf(rounded) || std::isnan(y)) {
    worst.wrong += std::isnan(rounded) ? !std::isnan(y) : y != rounded;
    return;
  }
  worst.wrong += std::signbit(y) != std::signbit(exact);
  double value = std::isinf(y) ? std::copysign(0x1p128, y) : y;
  double error = std::fabs(value - exact) / last_place(exact);
  if (error > worst.error) worst.error = error, worst.input = x;
}

template <class F, class Exact>
void scan(const char* name, F f, Exact exact) {
  constexpr int64_t block = 4096;
  Worst worst;
#pragma omp parallel
  {
    Worst own;
    float x[block], y[block];
#pragma omp for schedule(dynamic, 64)
    for (int64_t first = 0; first < int64_t(1) << 32; first += block) {
      for (int64_t i = 0; i < block; i++)
        x[i] = numerics::from_bits(static_cast<int32_t>(static_cast<uint32_t>(first + i)));
      for (int64_t i = 0; i < block; i += FloatV::size) numerics::store(y + i, f(numerics::load(x + i)));
      for (int64_t i = 0; i < block; i++) compare(x[i], y[i], exact(static_cast<double>(x[i])), own);
    }
#pragma omp critical
    {
      worst.wrong += own.wrong;
      if (own.error > worst.error) worst.error = own.error, worst.input = own.input;
    }
  }
  std::printf("%-16s at most %.3f ulp (at %a), %lld wrong specials or signs\n", name, worst.error, worst.input,
              static_cast<long long>(worst.wrong));
  std::fflush(stdout);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double exp_nonpositive(double x) { return std::fabs(x) > 87 ? 0 : std::exp(-std::fabs(x)); }

}  // namespace

int main() {
  scan("exp", [](FloatV x) { return numerics::exp(x); }, [](double x) { return std::exp(x); });
  scan(
      "exp_nonpositive", [](FloatV x) { return numerics::exp_nonpositive(numerics::neg(numerics::abs(x))); },
      exp_nonpositive);
  scan("log", [](FloatV x) { return numerics::log(x); }, [](double x) { return std::log(x); });
  scan("log1p", [](FloatV x) { return numerics::log1p(x); }, [](double x) { return std::log1p(x); });
  scan("sigmoid", [](FloatV x) { return numerics::sigmoid(x); }, sigmoid);
  scan("tanh", [](FloatV x) { return numerics::tanh(x); }, [](double x) { return std::tanh(x); });
  scan("erf", [](FloatV x) { return numerics::erf(x); }, [](double x) { return std::erf(x); });
}
