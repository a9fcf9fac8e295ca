"""SGD, Adam, AdamW and clip_grad_norm_ on float32 arrays, in place.

A coefficient that is derived from options (1 - beta, lr * weight_decay, lr / (1 - beta^t) and so on) is computed in
double and rounded once to float32. With weight_decay 0 the decay is left out, not computed.
"""

import numpy as np

from .arithmetic import float32, fma, ieee, maximum, minimum
from .orders import sum_row

ONE = float32(1)


def power(base, exponent):
    """base^exponent in double, by squaring: neither pow nor a running product over the steps."""
    result = 1.0
    while exponent > 0:
        if exponent % 2:
            result *= base
        exponent //= 2
        base *= base
    return result


@ieee
def sgd(param, grad, state, *, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
    """The first step's momentum buffer is the gradient itself, without dampening."""
    g = -grad if maximize else grad
    if float32(weight_decay) != 0:
        g = fma(float32(weight_decay), param, g)
    if momentum != 0:
        m = float32(momentum)
        if "momentum_buffer" in state:
            state["momentum_buffer"] = fma(m, state["momentum_buffer"], float32(1 - dampening) * g)
        else:
            state["momentum_buffer"] = g.copy()
        g = fma(m, state["momentum_buffer"], g) if nesterov else state["momentum_buffer"]
    param[...] = fma(float32(-lr), g, param)


@ieee
def adam(
    param,
    grad,
    state,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    amsgrad=False,
    maximize=False,
    decoupled=False,
):
    """Adam, and with ``decoupled`` AdamW: the decay then scales the parameter and stays out of the moments."""
    state["step"] = t = state.get("step", 0) + 1
    m, v = (state.get(name, np.zeros_like(param)) for name in ("exp_avg", "exp_avg_sq"))
    beta1, beta2 = betas
    g = -grad if maximize else grad
    p = param
    if float32(weight_decay) != 0:
        if decoupled:
            p = fma(float32(-(lr * weight_decay)), p, p)
        else:
            g = fma(float32(weight_decay), p, g)
    state["exp_avg"] = m = fma(float32(beta1), m, float32(1 - beta1) * g)
    state["exp_avg_sq"] = v = fma(float32(beta2), v, float32(1 - beta2) * (g * g))
    if amsgrad:
        state["max_exp_avg_sq"] = v = maximum(state.get("max_exp_avg_sq", np.zeros_like(param)), v)
    step_size = lr / (1 - power(beta1, t))
    scale = 1 / np.sqrt(1 - power(beta2, t))
    denominator = fma(np.sqrt(v), float32(scale), float32(eps))
    param[...] = fma(float32(-step_size), m / denominator, p)


@ieee
def clip_grad_norm(grads, max_norm):
    """The norm: root of the sum rule over the squares of the per-tensor norms, each made likewise from its elements."""
    norms = np.array([np.sqrt(sum_row(g.reshape(-1) * g.reshape(-1))) for g in grads], np.float32)
    norm = np.sqrt(sum_row(norms * norms))
    factor = minimum(ONE, float32(max_norm) / (norm + float32(1e-6)))
    for g in grads:
        g *= factor
    return norm
