"""softmax: exponentials along a dimension that sum to 1; only the result is saved for the backward pass."""

import functools

import torch
import torch.nn.functional as F

from ..triton_path import launchers
from .checks import expect, expect_tensors
from .composition import with_composed_derivative
from .paths import choice, is_dynamo_compiling, is_traced, overridden, register_fake, traceable


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    """``torch.nn.functional.softmax``.

    ``dtype``: the input is converted to it first. Raises IndexError for a dimension the input does not have and
    NotImplementedError for a dtype that is not floating-point.
    """
    if not is_dynamo_compiling():
        output = choice.kernels.softmax(input, dim, dtype)
        if output is not None:
            return output
    return otherwise("softmax", F.softmax, input, dim, _stacklevel, dtype)


def otherwise(op, stock, input, dim, stacklevel, dtype):
    """What softmax and log_softmax do where the eager kernels have not taken the call."""
    if overridden(input):
        return stock(input, dim, stacklevel + 2, dtype)
    check(op, input, dtype)
    if dim is None:
        dim = F._get_softmax_dim(op, input.dim(), stacklevel + 1)  # warns
        if not is_dynamo_compiling():
            output = getattr(choice.kernels, op)(input, dim, dtype)
            if output is not None:
                return output
    if isinstance(dim, int):
        dims = max(input.dim(), 1)
        error = IndexError if -(2**63) <= dim < 2**63 else ValueError
        expect(-dims <= dim < dims, op, f"dim between {-dims} and {dims - 1}", dim, error)
    if is_traced(input) and (operators := traceable(input if dtype is None else input.to(dtype))):
        return getattr(operators, op)(input, dim, dtype)
    return stock(input, dim, dtype=dtype)


def check(op, input, dtype):
    """What the arguments must be."""
    expect_tensors(op, input=input)
    expect(dtype is None or isinstance(dtype, torch.dtype), op, "dtype to be a torch.dtype", dtype, TypeError)
    computed = input.dtype if dtype is None else dtype
    floating = "a floating-point input, or a floating-point dtype to convert it to"
    expect(computed.is_floating_point, op, floating, computed, NotImplementedError)


class SoftmaxFunction(torch.autograd.Function):
    """softmax and log_softmax on the Triton path."""

    @staticmethod
    def forward(ctx, input, dim, logarithm):
        output = launchers.softmax_forward(input, dim, logarithm)
        ctx.save_for_backward(output)
        ctx.dim, ctx.logarithm = dim, logarithm
        return output

    @staticmethod
    def backward(ctx, grad):
        return softmax_backward(grad, *ctx.saved_tensors, ctx.dim, ctx.logarithm), None, None


def softmax_backward(grad, output, dim, logarithm):
    """The input's gradient on the Triton path, differentiable."""
    kernel = functools.partial(launchers.softmax_backward, dim=dim, logarithm=logarithm)
    compose = functools.partial(composed_softmax_gradient, dim=dim, logarithm=logarithm)
    return with_composed_derivative(kernel, compose, grad, output)


def composed_softmax_gradient(g, y, dim, logarithm):
    """The input's gradient in stock operators."""
    if logarithm:
        return g - y.exp() * g.sum(dim, keepdim=True)
    return y * (g - (y * g).sum(dim, keepdim=True))


@register_fake("softmax_forward")
def _(input, dim, logarithm):
    return input.new_empty(input.shape)


@register_fake("softmax_backward")
def _(grad, output, dim, logarithm):
    return output.new_empty(output.shape)
