// What the optimisers' kernels get instead of options: derived in double on the host, rounded once. The launchers of
// every path include this; kernel sources do not.
#pragma once

#include <cmath>
#include <cstdint>

#include "updates.h"

namespace pytorch_ext {

template <class T>
SgdRule<T> sgd_rule(double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  return {T(-lr), T(momentum), T(1 - dampening), T(weight_decay), nesterov, maximize};
}

template <class T>
AdamRule<T> adam_rule(double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled,
                      bool amsgrad, bool maximize) {
  return {T(beta1),  T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(weight_decay), T(-(lr * weight_decay)),
          decoupled, amsgrad,      maximize};
}

// By squaring, from the current beta and the stored step: never a running product, since schedulers change betas and
// checkpoints resume.
inline double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    const double factors[] = {1, base};  // a branch would often be foreseen wrongly
    result *= factors[exponent % 2];
  }
  return result;
}

// What changes from one step of Adam to the next.
struct AdamStep {
  double negative_step_size, scale;
};
inline AdamStep adam_step_factors(double lr, double beta1, double beta2, int64_t step) {
  return {-(lr / (1 - power(beta1, step))), 1 / std::sqrt(1 - power(beta2, step))};
}

}  // namespace pytorch_ext
