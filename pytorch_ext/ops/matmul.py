"""matmul: products of matrices and vectors, batched and broadcast."""

import functools

import torch

from ..triton_path import launchers
from .checks import broadcast, expect, expect_alike, expect_tensors, into
from .composition import to_save, with_composed_derivative
from .paths import choice, is_dynamo_compiling, overridden, products_are_ieee, register_fake, traceable


def matmul(input, other, *, out=None):
    """``torch.matmul``.

    input ``(..., M, K)`` or ``(K,)``, other ``(..., K, N)`` or ``(K,)``; the leading dimensions broadcast. Integer,
    boolean and complex tensors take the stock operator. RuntimeError where shapes, dtypes or devices do not match.
    """
    if out is not None:
        return into("matmul", out, matmul(input, other))
    if not is_dynamo_compiling():
        output = choice.kernels.matmul(input, other)
        if output is not None:
            return output
        try:  # The checks take five times as long as a small product of integers: they wait until stock refuses.
            if input.device == other.device and not traceable(input, other):
                return torch.matmul(input, other)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            pass
    if not overridden(input, other):
        check(input, other)
        if (operators := traceable(input, other)) and products_are_ieee(input):
            return operators.matmul(input, other)
    return torch.matmul(input, other)


def check(input, other):
    """What the arguments must be."""
    expect_tensors("matmul", input=input, other=other)
    expect_alike("matmul", input=input, other=other)
    dims = (input.dim(), other.dim())
    expect(min(dims) >= 1, "matmul", "input and other of at least 1 dimension", f"{dims[0]} and {dims[1]}")
    shapes = f"{tuple(input.shape)} and {tuple(other.shape)}"
    inner = other.shape[-2 if other.dim() > 1 else 0]
    expect(input.shape[-1] == inner, "matmul", "input (..., M, K) and other (..., K, N)", shapes)
    batches_fit = broadcast(input.shape[:-2], other.shape[:-2])
    expect(batches_fit, "matmul", "batch dimensions that broadcast", shapes)


class MatmulFunction(torch.autograd.Function):
    """matmul on the Triton path."""

    @staticmethod
    def forward(ctx, input, other):
        of_input, of_other = ctx.needs_input_grad
        ctx.save_for_backward(to_save(input, of_other), to_save(other, of_input))
        return launchers.matmul_forward(input, other)

    @staticmethod
    def backward(ctx, grad):
        return matmul_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad)


def matmul_backward(grad, input, other, mask):
    """The gradients that the mask chooses, on the Triton path, differentiable."""
    kernel = functools.partial(launchers.matmul_backward, mask=mask)
    return with_composed_derivative(kernel, composed_matmul_gradients, grad, input, other, widen=False)


def composed_matmul_gradients(grad, input, other):
    """Both gradients in stock operators."""
    g, A, B = grad, input, other
    if other.dim() == 1:
        g, B = g.unsqueeze(-1), B.unsqueeze(1)
    if input.dim() == 1:
        g, A = g.unsqueeze(-2), A.unsqueeze(0)
    dA, dB = (g @ B.mT).sum_to_size(A.shape), (A.mT @ g).sum_to_size(B.shape)
    return dA.reshape(input.shape), dB.reshape(other.shape)


@register_fake("matmul_forward")
def _(input, other):
    shape = torch.broadcast_shapes(input.shape[:-2], other.shape[:-2])
    return input.new_empty((*shape, *input.shape[-2:-1], *(other.shape[-1:] if other.dim() > 1 else ())))


@register_fake("matmul_backward")
def _(grad, input, other, mask):
    return (
        input.new_empty(input.shape) if mask[0] else None,
        other.new_empty(other.shape) if mask[1] else None,
    )
