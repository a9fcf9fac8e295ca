"""Activations on their own, and their values and derivatives for the kernels that fuse one."""

import torch
import triton.language as tl

from . import numerics as n
from .launch import block_size, blocks, device_function, kernel, launch

# Whether the gradient needs z = the activation's input, or its output y.
SAVES_INPUT = ("gelu", "gelu_tanh", "silu")

SQRT_HALF = tl.constexpr(0.70710678118654752440)
DENSITY_AT_ZERO = tl.constexpr(0.39894228040143267794)  # 1 / sqrt(2 pi)
SQRT_TWO_OVER_PI = tl.constexpr(0.79788456080286535588)


@device_function
def normal_distribution(z):
    return 0.5 * (1.0 + n.erf(z * SQRT_HALF))


@device_function
def gelu_tanh_inner(z):
    return tl.fma(z * z * z, n.constant(z, 0.044715), z) * SQRT_TWO_OVER_PI


@device_function
def value(z, KIND: tl.constexpr):
    """y = f(z), each operation as written."""
    if KIND == "relu":
        return tl.where(z < 0.0, 0.0, z)  # NaN stays NaN
    elif KIND == "sigmoid":
        return n.sigmoid(z)
    elif KIND == "tanh":
        return n.tanh(z)
    elif KIND == "gelu":
        return z * normal_distribution(z)
    elif KIND == "gelu_tanh":
        return 0.5 * z * (1.0 + n.tanh(gelu_tanh_inner(z)))
    elif KIND == "silu":
        return z * n.sigmoid(z)
    else:
        return z


@device_function
def gradient(g, saved, KIND: tl.constexpr):
    """g f'(z), where `saved` is y for relu, sigmoid and tanh, and z for gelu, gelu_tanh and silu."""
    if KIND == "relu":
        return tl.where(saved <= 0.0, 0.0, g)
    elif KIND == "sigmoid":
        return g * (saved * (1.0 - saved))
    elif KIND == "tanh":
        return g * tl.fma(n.negative(saved), saved, 1.0)
    elif KIND == "gelu":  # Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)
        density = n.exp(saved * saved * -0.5) * DENSITY_AT_ZERO
        return g * tl.fma(saved, density, normal_distribution(saved))
    elif KIND == "gelu_tanh":
        t = n.tanh(gelu_tanh_inner(saved))
        slope = tl.fma(saved * saved, n.constant(saved, 0.134145), 1.0) * SQRT_TWO_OVER_PI
        right = 0.5 * saved * tl.fma(n.negative(t), t, 1.0) * slope
        return g * tl.fma(1.0 + t, 0.5, right)
    elif KIND == "silu":
        s = n.sigmoid(saved)
        return g * (s * tl.fma(saved, 1.0 - s, 1.0))
    else:
        return g


# ---- kernels --------------------------------------------------------------------------------------------------------


# y = f(x)
@kernel
def activation_forward_kernel(x_ptr, y_ptr, count, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < count)
    y = value(n.widen(x), KIND)
    tl.store(y_ptr + i, n.narrow(y, y_ptr.dtype.element_ty), mask=i < count)


# dx = g f'(x), from x or from y
@kernel
def activation_backward_kernel(g_ptr, saved_ptr, dx_ptr, count, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(g_ptr + i, mask=i < count)
    saved = tl.load(saved_ptr + i, mask=i < count)
    dx = gradient(n.widen(g), n.widen(saved), KIND)
    tl.store(dx_ptr + i, n.narrow(dx, dx_ptr.dtype.element_ty), mask=i < count)


def without_gaps(t):
    """(t, an empty tensor of the same order in memory): a copy of t where it has gaps, which torch gives no result."""
    output = torch.empty_like(t) if t.numel() else t.new_empty(t.shape)  # torch knows no order of no elements
    return (t if t.stride() == output.stride() else torch.empty_like(t).copy_(t)), output


def activation_forward(input, kind):
    x, y = without_gaps(input)
    block = block_size(x.numel(), 1024)
    launch(activation_forward_kernel, (blocks(x.numel(), block),), x, y, x.numel(), KIND=kind, BLOCK=block)
    return y


def activation_backward(grad, saved, kind):
    saved, dx = without_gaps(saved)
    g = grad if grad.stride() == saved.stride() else torch.empty_like(saved).copy_(grad)
    block = block_size(g.numel(), 1024)
    launch(activation_backward_kernel, (blocks(g.numel(), block),), g, saved, dx, g.numel(), KIND=kind, BLOCK=block)
    return dx
