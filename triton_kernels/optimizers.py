"""The optimisers' steps and the clipping of gradients, a tensor at a time; csrc/numerics/updates.h has the rules.

Coefficients come as Python floats, which a launch rounds to float32: float64 parameters take the stock step.
"""

import torch
import triton.language as tl

from . import numerics as n
from .launch import block_size, blocks, device_function, kernel, launch
from .reduce import sum_rows


@device_function
def load(ptr, i, count):
    return n.widen(tl.load(ptr + i, mask=i < count))


@device_function
def store(ptr, i, count, x):
    tl.store(ptr + i, n.narrow(x, ptr.dtype.element_ty), mask=i < count)


# p -= lr g. With momentum the buffer b starts as the gradient itself, afterwards momentum b + (1 - dampening) g.
@kernel
def sgd_kernel(
    p_ptr, g_ptr, b_ptr, count, negative_lr, momentum, one_minus_dampening, weight_decay,
    MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, BUFFER: tl.constexpr, FIRST: tl.constexpr, NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    p, g = load(p_ptr, i, count), load(g_ptr, i, count)
    if MAXIMIZE:
        g = n.negative(g)
    if DECAY:
        g = tl.fma(p, weight_decay, g)
    if BUFFER:
        b = g if FIRST else tl.fma(load(b_ptr, i, count), momentum, g * one_minus_dampening)
        store(b_ptr, i, count, b)
        g = tl.fma(b, momentum, g) if NESTEROV else b
    store(p_ptr, i, count, tl.fma(g, negative_lr, p))


# m and v are moving means of g and g^2; p -= step_size m / (sqrt(v) scale + eps), with step_size = lr / (1 - beta1^t)
# and scale = 1 / sqrt(1 - beta2^t).
@kernel
def adam_kernel(
    p_ptr, g_ptr, m_ptr, v_ptr, largest_ptr, count, negative_step_size, scale, beta1, one_minus_beta1, beta2,
    one_minus_beta2, eps, weight_decay, negative_lr_weight_decay,
    MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, DECOUPLED: tl.constexpr, AMSGRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    p, g = load(p_ptr, i, count), load(g_ptr, i, count)
    if MAXIMIZE:
        g = n.negative(g)
    if DECAY and DECOUPLED:
        p = tl.fma(p, negative_lr_weight_decay, p)
    elif DECAY:
        g = tl.fma(p, weight_decay, g)
    m = tl.fma(load(m_ptr, i, count), beta1, g * one_minus_beta1)
    v = tl.fma(load(v_ptr, i, count), beta2, (g * g) * one_minus_beta2)
    store(m_ptr, i, count, m)
    store(v_ptr, i, count, v)
    if AMSGRAD:
        v = n.maximum(load(largest_ptr, i, count), v)
        store(largest_ptr, i, count, v)
    denominator = tl.fma(n.sqrt(v), scale, eps)
    store(p_ptr, i, count, tl.fma(n.div(m, denominator), negative_step_size, p))


@kernel
def square_root_kernel(x_ptr, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    store(x_ptr, i, count, n.sqrt(load(x_ptr, i, count)))


# g *= min(max_norm / (norm + 1e-6), 1), always: a NaN norm makes every gradient NaN, as in torch.
@kernel
def clip_kernel(g_ptr, norm_ptr, count, max_norm, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = n.minimum(1.0, n.div(max_norm, tl.load(norm_ptr) + 1e-6))
    store(g_ptr, i, count, load(g_ptr, i, count) * factor)


def launch_elements(kernel, count, *arguments, **constants):
    """A launch over ``count`` elements of the tensors that come first among the arguments."""
    block = block_size(count, 1024)
    launch(kernel, (blocks(count, block),), *arguments, BLOCK=block, **constants)


def sgd_step(param, grad, buffer, first, *, lr, momentum, dampening, weight_decay, nesterov, maximize):
    """One tensor's step in place; ``buffer`` is None without momentum."""
    flags = {"MAXIMIZE": maximize, "DECAY": rounded(weight_decay) != 0, "BUFFER": buffer is not None}
    tensors = param, grad, param if buffer is None else buffer
    numbers = -lr, momentum, 1 - dampening, weight_decay
    count = param.numel()
    launch_elements(sgd_kernel, count, *tensors, count, *map(rounded, numbers), **flags, FIRST=first, NESTEROV=nesterov)


def adam_step(
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step,
    *, lr, betas, eps, weight_decay, decoupled, amsgrad, maximize,
):  # fmt: skip
    """One tensor's step in place, the one that makes ``step`` steps; ``max_exp_avg_sq`` is None without amsgrad."""
    flags = {"MAXIMIZE": maximize, "DECAY": rounded(weight_decay) != 0, "DECOUPLED": decoupled, "AMSGRAD": amsgrad}
    tensors = param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq if amsgrad else param
    beta1, beta2 = betas
    numbers = -(lr / (1 - power(beta1, step))), 1 / (1 - power(beta2, step)) ** 0.5
    numbers += beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, -(lr * weight_decay)
    launch_elements(adam_kernel, param.numel(), *tensors, param.numel(), *map(rounded, numbers), **flags)


def gradient_norm(grads):
    """The norm of the per-tensor norms, each the root of a sum of squares by the sum rule: a float32 scalar."""
    squares = torch.cat([sum_rows(g.view(1, -1), torch.float32, squares=True) for g in grads])
    launch_elements(square_root_kernel, len(grads), squares, len(grads))
    total = sum_rows(squares.view(1, -1), squares=True)
    launch_elements(square_root_kernel, 1, total, 1)
    return total.view(())


def clip_gradients(grads, max_norm, norm):
    for g in grads:
        launch_elements(clip_kernel, g.numel(), g, norm, g.numel(), rounded(max_norm))


def rounded(number):
    """A coefficient, derived in double, as the float32 that every path gets."""
    return torch.tensor(number, dtype=torch.float32).item()


def power(base, exponent):
    """By squaring: never a running product, since schedulers change betas and checkpoints resume."""
    result = 1.0
    while exponent > 0:
        if exponent % 2:
            result *= base
        exponent, base = exponent // 2, base * base
    return result
