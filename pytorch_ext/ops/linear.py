"""linear: y = activation(x W^T + b), the activation fused into the product's epilogue."""

import functools

import torch
import torch.nn.functional as F

from ..triton_path import launchers
from .activation import ACTIVATIONS, composed_activation_gradient, stock_activation
from .checks import expect, expect_alike, expect_tensors, into
from .composition import to_save, with_composed_derivative
from .paths import choice, is_dynamo_compiling, overridden, products_are_ieee, register_fake, traceable


def linear(input, weight, bias=None, *, activation=None, out=None):
    """``torch.nn.functional.linear``, then an activation in the same kernel.

    input ``(..., K)``, weight ``(N, K)``, bias ``(N,)`` or None; the result is ``(..., N)``. ``activation`` is None,
    ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``, ``"gelu_tanh"`` (``F.gelu(approximate="tanh")``) or ``"silu"``.
    Raises RuntimeError where shapes, dtypes or devices do not match and ValueError for an unknown activation.
    """
    if out is not None:
        return into("linear", out, linear(input, weight, bias, activation=activation))
    activation = activation or "none"
    if not is_dynamo_compiling():
        output = choice.kernels.linear(input, weight, bias, activation)
        if output is not None:
            return output
    if not overridden(input, weight, bias):
        check(input, weight, bias, activation)
        if (operators := traceable(input, weight, bias)) and products_are_ieee(input):
            return operators.linear(input, weight, bias, activation)
    return ACTIVATIONS[activation](F.linear(input, weight, bias))


def check(input, weight, bias, activation):
    """What the arguments must be."""
    stock_activation("linear", activation, ValueError)
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


class LinearFunction(torch.autograd.Function):
    """linear on the Triton path: (y, z), where the gradient is taken at z = x W^T + b; at y, and z is None, elsewhere.

    A gradient of z comes from second derivatives only.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, activation):
        output, preactivation = launchers.linear_forward(input, weight, bias, activation)
        of_input, of_weight = ctx.needs_input_grad[:2]
        saved = output if preactivation is None and activation != "none" else preactivation
        ctx.save_for_backward(to_save(input, of_weight), to_save(weight, of_input), saved)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return output, preactivation

    @staticmethod
    def backward(ctx, grad, grad_of_preactivation):
        input, weight, saved = ctx.saved_tensors
        mask, gradients = ctx.needs_input_grad[:3], (None, None, None)
        if grad is not None:
            gradients = linear_backward(grad, input, weight, saved, ctx.activation, mask)
        if grad_of_preactivation is not None:
            further = linear_backward(grad_of_preactivation, input, weight, None, "none", mask)
            pairs = zip(gradients, further, strict=True)
            gradients = [b if a is None else a + b for a, b in pairs]
        return *gradients, None


def linear_backward(grad, input, weight, saved, activation, mask):
    """The gradients of input, weight and bias that the mask chooses, on the Triton path, differentiable."""
    kernel = functools.partial(launchers.linear_backward, activation=activation, mask=mask)
    compose = functools.partial(composed_linear_gradients, activation=activation)
    return with_composed_derivative(kernel, compose, grad, input, weight, saved, widen=False)


def composed_linear_gradients(grad, input, weight, saved, activation):
    """The three gradients in stock operators."""
    dz = composed_activation_gradient(grad, saved, activation)
    rows = rows_of(dz)
    return dz @ weight, rows.t() @ rows_of(input), rows.sum(0)


def rows_of(t):
    """(..., C) as a matrix; without columns a size of -1 would be ambiguous."""
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


@register_fake("linear_inference")
def _(input, weight, bias, activation):
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@register_fake("linear_forward")
def _(input, weight, bias, activation):
    output = input.new_empty((*input.shape[:-1], weight.shape[0]))
    return output, torch.empty_like(output) if activation in ("gelu", "gelu_tanh", "silu") else None


@register_fake("linear_backward")
def _(grad, input, weight, saved, activation, mask):
    return (
        input.new_empty(input.shape) if mask[0] else None,
        weight.new_empty(weight.shape) if mask[1] else None,
        grad.new_empty((weight.shape[0],)) if mask[2] else None,
    )
