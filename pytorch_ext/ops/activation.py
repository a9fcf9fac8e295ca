"""relu, sigmoid, tanh, gelu and silu on their own: one operator, whose ``kind`` is the activation.

Inside a layer, ``linear(..., activation=)`` costs less: it needs no pass of its own over the values.
"""

import functools

import torch
import torch.nn.functional as F

from ..triton_path import kernels, launchers
from .checks import expect, expect_tensors, into
from .composition import with_composed_derivative
from .paths import choice, is_dynamo_compiling, overridden, register_fake, traceable

# The stock operator of every kind.
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def stock_activation(op, kind, error=RuntimeError):
    """The stock operator of that kind; ``op`` is named where there is none."""
    *kinds, last = ACTIVATIONS
    expect(kind in ACTIVATIONS, op, f"activation {', '.join(kinds)} or {last}", kind, error)
    return ACTIVATIONS[kind]


def activation(op, kind, input):
    """The activation of that kind, called by the name ``op``."""
    if not is_dynamo_compiling():
        output = choice.kernels.activation(input, kind)
        if output is not None:
            return output
    if not overridden(input):
        expect_tensors(op, input=input)
        if operators := traceable(input):
            return operators.activation(input, kind)
    return ACTIVATIONS[kind](input)


class ActivationFunction(torch.autograd.Function):
    """The activation on the Triton path; what is saved is its output or its input."""

    @staticmethod
    def forward(ctx, input, kind):
        output = launchers.activation_forward(input, kind)
        ctx.save_for_backward(input if kind in kernels.activation.SAVES_INPUT else output)
        ctx.kind = kind
        return output

    @staticmethod
    def backward(ctx, grad):
        return activation_backward(grad, *ctx.saved_tensors, ctx.kind), None


def activation_backward(grad, saved, kind):
    """g f'(z) on the Triton path, differentiable."""
    kernel = functools.partial(launchers.activation_backward, kind=kind)
    compose = functools.partial(composed_activation_gradient, kind=kind)
    return with_composed_derivative(kernel, compose, grad, saved)


def composed_activation_gradient(g, saved, kind):
    """g f'(z) in stock operators; ``saved`` is z or y = f(z) as the kernel has it."""
    if kind == "silu":  # aten::silu_backward has no derivative of its own
        s = torch.sigmoid(saved)
        return g * (s * (1 + saved * (1 - s)))
    return GRADIENTS[kind](g, saved)


# The stock operator for the derivative of every kind but silu.
GRADIENTS = {
    "none": lambda g, saved: g,
    "relu": lambda g, y: torch.ops.aten.threshold_backward(g, y, 0),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
}


def relu(input, inplace=False):
    """``torch.nn.functional.relu``. In place it is the stock operator, with the same bits."""
    return F.relu(input, inplace=True) if inplace else activation("relu", "relu", input)


def sigmoid(input):
    """``torch.nn.functional.sigmoid``."""
    return activation("sigmoid", "sigmoid", input)


def tanh(input):
    """``torch.nn.functional.tanh``."""
    return activation("tanh", "tanh", input)


def gelu(input, *, approximate="none", out=None):
    """``torch.nn.functional.gelu``. Raises RuntimeError where ``approximate`` is neither ``"none"`` nor ``"tanh"``,
    TypeError where it is no string."""
    if approximate not in ("none", "tanh"):
        error = RuntimeError if isinstance(approximate, str) else TypeError
        expect(False, "gelu", "approximate none or tanh", approximate, error)
    output = activation("gelu", "gelu_tanh" if approximate == "tanh" else "gelu", input)
    return output if out is None else into("gelu", out, output)


def silu(input, inplace=False):
    """``torch.nn.functional.silu``. In place it is the stock operator."""
    return F.silu(input, inplace=True) if inplace else activation("silu", "silu", input)


@register_fake("activation_forward")
def _(input, kind):
    return torch.empty_like(input)


@register_fake("activation_backward")
def _(grad, saved, kind):
    return torch.empty_like(saved)
