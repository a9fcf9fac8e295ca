"""linear: y = activation(x W^T + b), the activation fused into the product's epilogue."""

import torch
import torch.nn.functional as F

from .. import native
from .activation import ACTIVATIONS
from .checks import expect, expect_alike, expect_tensors
from .paths import choice, is_dynamo_compiling, overridden, products_are_ieee, traceable


def linear(input, weight, bias=None, *, activation=None):
    """``torch.nn.functional.linear``, then an activation in the same kernel.

    input ``(..., K)``, weight ``(N, K)``, bias ``(N,)`` or None; the result is ``(..., N)``. ``activation`` is None,
    ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``, ``"gelu_tanh"`` (``F.gelu(approximate="tanh")``) or ``"silu"``.
    Raises RuntimeError where shapes, dtypes or devices do not match and ValueError for an unknown activation.
    """
    activation = activation or "none"
    if not is_dynamo_compiling():
        output = choice.kernels.linear(input, weight, bias, activation)
        if output is not None:
            return output
    if not overridden(input, weight, bias):
        check(input, weight, bias, activation)
        if traceable(input, weight, bias) and products_are_ieee(input):
            return torch.ops.pytorch_ext.linear(input, weight, bias, activation)
    return ACTIVATIONS[activation](F.linear(input, weight, bias))


def check(input, weight, bias, activation):
    """What the arguments must be."""
    expect(activation in ACTIVATIONS, "linear", f"activation one of {', '.join(ACTIVATIONS)}", activation, ValueError)
    expect_tensors("linear", input=input, weight=weight, **({} if bias is None else {"bias": bias}))
    expect_alike("linear", input=input, weight=weight, bias=bias)
    if weight.dim() == 2 and input.dim() >= 1:
        expect(
            input.shape[-1] == weight.shape[1],
            "linear",
            f"input (..., {weight.shape[1]}) for weight {tuple(weight.shape)}",
            tuple(input.shape),
        )
        if bias is not None and bias.dim() == 1 and bias.shape[0] != 1:
            expect(bias.shape[0] == weight.shape[0], "linear", f"bias ({weight.shape[0]},)", tuple(bias.shape))


if native.library is not None:

    @torch.library.register_fake("pytorch_ext::linear_forward")
    def _(input, weight, bias, activation):
        output = input.new_empty((*input.shape[:-1], weight.shape[0]))
        return output, torch.empty_like(output) if activation in ("gelu", "gelu_tanh", "silu") else None

    @torch.library.register_fake("pytorch_ext::linear_backward")
    def _(grad, input, weight, saved, activation, mask):
        return (
            input.new_empty(input.shape) if mask[0] else None,
            weight.new_empty(weight.shape) if mask[1] else None,
            grad.new_empty((weight.shape[0],)) if mask[2] else None,
        )
