"""dropout: elements set to zero at random, the others scaled up; only the key of the random numbers is saved."""

import torch
import torch.nn.functional as F

from ..triton_path import launchers
from .checks import expect, expect_tensors
from .paths import choice, is_dynamo_compiling, overridden, register_fake, traceable


def dropout(input, p=0.5, training=True, inplace=False):
    """``torch.nn.functional.dropout``, with the same mask on every device for the same seed of ``torch.manual_seed``.

    The mask is another one than stock's. Raises ValueError for ``p`` outside [0, 1], RuntimeError for NaN.
    """
    if not is_dynamo_compiling():
        output = choice.kernels.dropout(input, p, training, inplace)
        if output is not None:
            return output
    if not overridden(input):
        expect_tensors("dropout", input=input)
        expect(0 <= p <= 1, "dropout", "p between 0 and 1", p, RuntimeError if p != p else ValueError)
        if operators := traceable(input):
            if not training or p == 0:
                return input
            output = operators.dropout(input, p, operators.dropout_key())
            return input.copy_(output) if inplace else output
    return F.dropout(input, p, training, inplace)


class DropoutFunction(torch.autograd.Function):
    """dropout on the Triton path. Its gradient is its own value with g for x, so derivatives of every order are."""

    @staticmethod
    def forward(ctx, input, p, key):
        ctx.save_for_backward(key)
        ctx.p = p
        return launchers.dropout_forward(input, p, key)

    @staticmethod
    def backward(ctx, grad):
        return DropoutFunction.apply(grad, ctx.p, *ctx.saved_tensors), None, None


@register_fake("dropout_key")
def _(generator=None):
    return torch.empty((), dtype=torch.int64)


@register_fake("dropout_forward")
def _(input, p, key):
    return torch.empty_like(input)
