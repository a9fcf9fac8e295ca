"""relu, sigmoid, tanh, gelu and silu on their own: one operator, whose ``kind`` is the activation.

Inside a layer, ``linear(..., activation=)`` costs less: it needs no pass of its own over the values.
"""

import functools

import torch
import torch.nn.functional as F

from .. import native
from .checks import expect, expect_tensors
from .paths import choice, is_dynamo_compiling, overridden, traceable

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


def activation(op, kind, input):
    """The activation of that kind, called by the name ``op``."""
    if not is_dynamo_compiling():
        output = choice.kernels.activation(input, kind)
        if output is not None:
            return output
    if not overridden(input):
        expect_tensors(op, input=input)
        if traceable(input):
            return torch.ops.pytorch_ext.activation(input, kind)
    return ACTIVATIONS[kind](input)


def relu(input, inplace=False):
    """``torch.nn.functional.relu``. In place it is the stock operator, with the same bits."""
    return F.relu(input, inplace=True) if inplace else activation("relu", "relu", input)


def sigmoid(input):
    """``torch.nn.functional.sigmoid``."""
    return activation("sigmoid", "sigmoid", input)


def tanh(input):
    """``torch.nn.functional.tanh``."""
    return activation("tanh", "tanh", input)


def gelu(input, *, approximate="none"):
    """``torch.nn.functional.gelu``. Raises RuntimeError where ``approximate`` is neither ``"none"`` nor ``"tanh"``."""
    expect(approximate in ("none", "tanh"), "gelu", "approximate none or tanh", approximate)
    return activation("gelu", "gelu_tanh" if approximate == "tanh" else "gelu", input)


def silu(input, inplace=False):
    """``torch.nn.functional.silu``. In place it is the stock operator."""
    return F.silu(input, inplace=True) if inplace else activation("silu", "silu", input)


if native.library is not None:

    @torch.library.register_fake("pytorch_ext::activation_forward")
    def _(input, kind):
        return torch.empty_like(input)

    @torch.library.register_fake("pytorch_ext::activation_backward")
    def _(grad, saved, kind):
        return torch.empty_like(saved)
