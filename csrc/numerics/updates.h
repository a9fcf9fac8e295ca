// The optimisers' rules for one element (or one Vector of them). Derived coefficients are host doubles rounded once.
#pragma once

#include "kinds.h"
#include "primitive.h"

namespace pytorch_ext {

template <class T>
struct SgdRule {
  T negative_lr, momentum, one_minus_dampening, weight_decay;
  bool nesterov, maximize;
};

template <class T>
struct AdamRule {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
  T weight_decay;              // coupled: times the parameter, added to the gradient
  T negative_lr_weight_decay;  // decoupled (AdamW): -(lr * weight_decay)
  bool decoupled, amsgrad, maximize;
};

}  // namespace pytorch_ext

namespace pytorch_ext::PYTORCH_EXT_ISA {

// p -= lr g. With momentum the buffer starts as the gradient itself (`first`), afterwards momentum b + (1 - dampening)
// g.
template <class V, class T>
INLINE_HD void sgd_update(const SgdRule<T>& rule, V& param, V grad, V* buffer, bool first) {
  if (rule.maximize) grad = neg(grad);
  if (rule.weight_decay != 0) grad = fma(constant<V>(rule.weight_decay), param, grad);
  if (buffer) {
    V momentum = constant<V>(rule.momentum);
    *buffer = first ? grad : fma(momentum, *buffer, mul(constant<V>(rule.one_minus_dampening), grad));
    grad = rule.nesterov ? fma(momentum, *buffer, grad) : *buffer;
  }
  param = fma(constant<V>(rule.negative_lr), grad, param);
}

// p -= step_size m / (sqrt(v) scale + eps), with step_size = lr / (1 - beta1^t) and scale = 1 / sqrt(1 - beta2^t).
template <class V, class T>
INLINE_HD void adam_update(const AdamRule<T>& rule, T negative_step_size, T scale, V& param, V grad, V& m, V& v,
                           V* v_max) {
  if (rule.maximize) grad = neg(grad);
  if (rule.weight_decay != 0) {
    if (rule.decoupled)
      param = fma(constant<V>(rule.negative_lr_weight_decay), param, param);
    else
      grad = fma(constant<V>(rule.weight_decay), param, grad);
  }
  m = fma(constant<V>(rule.beta1), m, mul(constant<V>(rule.one_minus_beta1), grad));
  v = fma(constant<V>(rule.beta2), v, mul(constant<V>(rule.one_minus_beta2), mul(grad, grad)));
  V second = v;
  if (v_max) second = *v_max = max(*v_max, v);
  V denominator = fma(sqrt(second), constant<V>(scale), constant<V>(rule.eps));
  param = fma(constant<V>(negative_step_size), div(m, denominator), param);
}

}  // namespace pytorch_ext::PYTORCH_EXT_ISA
