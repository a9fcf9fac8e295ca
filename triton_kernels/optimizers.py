"""The optimisers' steps and the clipping of gradients, many tensors a launch; csrc/numerics/updates.h has the rules.

Tensors of one launch are of one dtype, on one device. Coefficients are computed in double; for all but float64 they are
rounded to float32 once.
"""

import torch
import triton.language as tl

from . import numerics as n
from .launch import block_size, device_function, kernel, launch
from .reduce import norms_of, sum_rows
from .rows import computed_in
from .tensor_table import array, chunk_of, launch_over


@device_function
def elements_of(table_ptr, tensors, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """(tensor, the program's elements of it, which of them exist, whether all do)"""
    owner, first, count = chunk_of(table_ptr, tl.program_id(0), tl.num_programs(0), tensors, KINDS, BLOCK)
    i = first + tl.arange(0, BLOCK)
    return owner, i, i < count, first + BLOCK <= count


# A chunk without a gap is read and written without a mask, 16 bytes at a time.


@device_function
def load(ptr, i, exists):
    return n.widen(tl.load(ptr + i, mask=exists))


@device_function
def store(ptr, i, exists, x):
    tl.store(ptr + i, n.narrow(x, ptr.dtype.element_ty), mask=exists)


@device_function
def coefficient(x, number):
    """In x's type."""
    return tl.full(x.shape, number, x.dtype)


@device_function
def sgd_update(arrays, i, exists, numbers, flags):
    p_ptr, g_ptr, b_ptr = arrays
    negative_lr, momentum, one_minus_dampening, weight_decay = numbers
    MAXIMIZE, DECAY, BUFFER, FIRST, NESTEROV = flags
    p, g = load(p_ptr, i, exists), load(g_ptr, i, exists)
    if MAXIMIZE:
        g = n.negative(g)
    if DECAY:
        g = tl.fma(p, coefficient(p, weight_decay), g)
    if BUFFER:
        if FIRST:
            b = g
        else:
            b = tl.fma(load(b_ptr, i, exists), coefficient(p, momentum), g * coefficient(p, one_minus_dampening))
        store(b_ptr, i, exists, b)
        g = tl.fma(b, coefficient(p, momentum), g) if NESTEROV else b
    store(p_ptr, i, exists, tl.fma(g, coefficient(p, negative_lr), p))


# p -= lr g. With momentum the buffer b starts as the gradient itself, afterwards momentum b + (1 - dampening) g; then
# p -= lr b, NESTEROV: p -= lr (g + momentum b).
@kernel
def sgd_kernel(
    like_ptr, table_ptr, tensors,
    negative_lr: tl.float64, momentum: tl.float64, one_minus_dampening: tl.float64, weight_decay: tl.float64,
    MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, BUFFER: tl.constexpr, FIRST: tl.constexpr, NESTEROV: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    owner, i, exists, whole = elements_of(table_ptr, tensors, 3 if BUFFER else 2, BLOCK)
    p_ptr = array(table_ptr, 0, owner, tensors, like_ptr, ALIGNED)
    g_ptr = array(table_ptr, 1, owner, tensors, like_ptr, ALIGNED)
    b_ptr = array(table_ptr, 2, owner, tensors, like_ptr, ALIGNED) if BUFFER else p_ptr
    arrays, numbers = (p_ptr, g_ptr, b_ptr), (negative_lr, momentum, one_minus_dampening, weight_decay)
    flags: tl.constexpr = (MAXIMIZE, DECAY, BUFFER, FIRST, NESTEROV)
    if whole:
        sgd_update(arrays, i, None, numbers, flags)
    else:
        sgd_update(arrays, i, exists, numbers, flags)


@device_function
def adam_update(arrays, i, exists, step, betas, decays, flags):
    p_ptr, g_ptr, m_ptr, v_ptr, largest_ptr = arrays
    negative_step_size, scale, eps = step
    beta1, one_minus_beta1, beta2, one_minus_beta2 = betas
    weight_decay, negative_lr_weight_decay = decays
    MAXIMIZE, DECAY, DECOUPLED, AMSGRAD = flags
    p, g = load(p_ptr, i, exists), load(g_ptr, i, exists)
    if MAXIMIZE:
        g = n.negative(g)
    if DECAY and DECOUPLED:
        p = tl.fma(p, coefficient(p, negative_lr_weight_decay), p)
    elif DECAY:
        g = tl.fma(p, coefficient(p, weight_decay), g)
    m = tl.fma(load(m_ptr, i, exists), coefficient(p, beta1), g * coefficient(p, one_minus_beta1))
    v = tl.fma(load(v_ptr, i, exists), coefficient(p, beta2), (g * g) * coefficient(p, one_minus_beta2))
    store(m_ptr, i, exists, m)
    store(v_ptr, i, exists, v)
    if AMSGRAD:
        v = n.maximum(load(largest_ptr, i, exists), v)
        store(largest_ptr, i, exists, v)
    denominator = tl.fma(n.sqrt(v), coefficient(p, scale), coefficient(p, eps))
    store(p_ptr, i, exists, tl.fma(n.div(m, denominator), coefficient(p, negative_step_size), p))


# m = beta1 m + (1 - beta1) g and v = beta2 v + (1 - beta2) g^2; p -= step_size m / (sqrt(v) scale + eps), with
# step_size = lr / (1 - beta1^t) and scale = 1 / sqrt(1 - beta2^t).
@kernel
def adam_kernel(
    like_ptr, table_ptr, tensors, negative_step_size: tl.float64, scale: tl.float64,
    beta1: tl.float64, one_minus_beta1: tl.float64, beta2: tl.float64, one_minus_beta2: tl.float64, eps: tl.float64,
    weight_decay: tl.float64, negative_lr_weight_decay: tl.float64,
    MAXIMIZE: tl.constexpr, DECAY: tl.constexpr, DECOUPLED: tl.constexpr, AMSGRAD: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    owner, i, exists, whole = elements_of(table_ptr, tensors, 5 if AMSGRAD else 4, BLOCK)
    p_ptr = array(table_ptr, 0, owner, tensors, like_ptr, ALIGNED)
    g_ptr = array(table_ptr, 1, owner, tensors, like_ptr, ALIGNED)
    m_ptr = array(table_ptr, 2, owner, tensors, like_ptr, ALIGNED)
    v_ptr = array(table_ptr, 3, owner, tensors, like_ptr, ALIGNED)
    largest_ptr = array(table_ptr, 4, owner, tensors, like_ptr, ALIGNED) if AMSGRAD else p_ptr
    arrays, step = (p_ptr, g_ptr, m_ptr, v_ptr, largest_ptr), (negative_step_size, scale, eps)
    betas = (beta1, one_minus_beta1, beta2, one_minus_beta2)
    decays = (weight_decay, negative_lr_weight_decay)
    flags: tl.constexpr = (MAXIMIZE, DECAY, DECOUPLED, AMSGRAD)
    if whole:
        adam_update(arrays, i, None, step, betas, decays, flags)
    else:
        adam_update(arrays, i, exists, step, betas, decays, flags)


# x = sqrt(x)
@kernel
def square_root_kernel(x_ptr):
    x_ptr += tl.arange(0, 1)
    tl.store(x_ptr, n.sqrt(tl.load(x_ptr)))


# g *= min(max_norm / (norm + 1e-6), 1), always: a NaN norm makes every gradient NaN, as in torch.
@kernel
def clip_kernel(g_ptr, table_ptr, tensors, norm_ptr, max_norm: tl.float64, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    owner, i, exists, whole = elements_of(table_ptr, tensors, 1, BLOCK)
    g_ptr = array(table_ptr, 0, owner, tensors, g_ptr, ALIGNED)
    norm = tl.load(norm_ptr + tl.arange(0, 1))
    factor = n.minimum(1.0, n.div(coefficient(norm, max_norm), norm + coefficient(norm, 1e-6)))
    if whole:
        store(g_ptr, i, None, load(g_ptr, i, None) * factor)
    else:
        store(g_ptr, i, exists, load(g_ptr, i, exists) * factor)


def chunk(tensors):
    """Elements for one program."""
    return block_size(max(t.numel() for t in tensors), 1024)


def sgd_step(params, grads, buffers, first, *, lr, momentum, dampening, weight_decay, nesterov, maximize):
    """A step in place; ``buffers`` is None without momentum, ``first`` whether they are yet to be filled."""
    numbers = rounded(params[0].dtype, -lr, momentum, 1 - dampening, weight_decay)
    flags = {"MAXIMIZE": maximize, "DECAY": numbers[3] != 0, "BUFFER": buffers is not None}
    kinds = [params, grads] if buffers is None else [params, grads, buffers]
    launch_over(sgd_kernel, kinds, chunk(params), *numbers, **flags, FIRST=first, NESTEROV=nesterov)


def adam_step(
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, step,
    *, lr, betas, eps, weight_decay, decoupled, amsgrad, maximize,
):  # fmt: skip
    """A step in place, the one that makes ``step`` steps; ``max_exp_avg_sqs`` is None without amsgrad."""
    beta1, beta2 = betas
    numbers = -(lr / (1 - power(beta1, step))), 1 / (1 - power(beta2, step)) ** 0.5
    numbers += beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, -(lr * weight_decay)
    numbers = rounded(params[0].dtype, *numbers)
    flags = {"MAXIMIZE": maximize, "DECAY": numbers[7] != 0, "DECOUPLED": decoupled, "AMSGRAD": amsgrad}
    kinds = [params, grads, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if amsgrad else [])]
    launch_over(adam_kernel, kinds, chunk(params), *numbers, **flags)


def gradient_norm(grads):
    """The norm of the per-tensor norms, each the root of a sum of squares by the sum rule: a number on the device."""
    norms = norms_of(grads).view(1, -1)
    total = sum_rows(norms, times=norms)
    launch(square_root_kernel, (1,), total)
    return total.view(())


def clip_gradients(grads, max_norm, norm):
    launch_over(clip_kernel, [grads], chunk(grads), norm, *rounded(grads[0].dtype, max_norm))


def rounded(dtype, *numbers):
    """Coefficients, derived in double, as the numbers that every path gets for parameters of a dtype."""
    return torch.tensor(numbers, dtype=computed_in(dtype)).tolist()


def power(base, exponent):
    """By squaring: never a running product, since schedulers change betas and checkpoints resume."""
    result = 1.0
    while exponent > 0:
        if exponent % 2:
            result *= base
        exponent, base = exponent // 2, base * base
    return result
