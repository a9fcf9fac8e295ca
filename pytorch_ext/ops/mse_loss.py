"""mse_loss: the mean of squared differences, value and gradients in one pass."""

import warnings

import torch
import torch.nn.functional as F

from .checks import expect, expect_tensors
from .losses import REDUCTIONS, reduction_name, traceable_loss
from .paths import choice, is_dynamo_compiling, overridden


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """``torch.nn.functional.mse_loss``.

    input and target broadcast, with stock's warning where their shapes differ; weight has the shape of input, and its
    weighted mean divides by the sum of the weights. Raises RuntimeError where the shapes do not broadcast, ValueError
    for an unknown reduction or another shape of weight. A weight that requires a gradient takes the stock operators.
    """
    compiling = is_dynamo_compiling()
    if size_average is None and reduce is None and not compiling:
        code = REDUCTIONS.get(reduction) if type(reduction) is str else None
        loss = choice.kernels.mse_loss(input, target, weight, code)
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.mse_loss(input, target, size_average, reduce, reduction, weight)
    check(input, target, weight)
    reduction = reduction_name("mse_loss", size_average, reduce, reduction)
    loss, broadcast = None, target.shape != input.shape
    if not compiling:
        loss = choice.kernels.mse_loss_broadcast(input, target, weight, REDUCTIONS[reduction])
        if loss is not None and broadcast:
            warn_of_broadcasting(input, target)
    elif operators := traceable_loss(input, target, weight):
        if broadcast:
            input = _with_warning(input, target)
        loss = operators.mse_loss(input, target, weight, REDUCTIONS[reduction])
    return F.mse_loss(input, target, reduction=reduction, weight=weight) if loss is None else loss


@torch.compiler.allow_in_graph  # Dynamo cannot trace a warning
def _with_warning(input, target):
    warn_of_broadcasting(input, target)
    return input


def warn_of_broadcasting(input, target):
    """Stock's warning, at the line that called :func:`mse_loss`."""
    warnings.warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
        stacklevel=3,
    )


def check(input, target, weight):
    """What the arguments must be."""
    expect_tensors("mse_loss", input=input, target=target, **({} if weight is None else {"weight": weight}))
    pairs = zip(reversed(input.shape), reversed(target.shape), strict=False)
    broadcasts = all(a == b or 1 in (a, b) for a, b in pairs)
    expect(broadcasts, "mse_loss", f"target that broadcasts with input {tuple(input.shape)}", tuple(target.shape))
    if weight is not None:
        same = weight.shape == input.shape
        expect(same, "mse_loss", f"weight {tuple(input.shape)} as input", tuple(weight.shape), ValueError)
