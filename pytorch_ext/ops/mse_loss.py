"""mse_loss: the mean of squared differences, value and gradients in one pass."""

import torch.nn.functional as F

from .checks import broadcast, expect, expect_tensors
from .losses import REDUCTIONS, reduction_code, reduction_name, traceable_loss, warn_of_broadcasting
from .paths import choice, is_dynamo_compiling, is_traced, overridden


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """``torch.nn.functional.mse_loss``.

    input and target broadcast, with stock's warning where their shapes differ; weight has the shape of input, and its
    weighted mean divides by the sum of the weights. Raises RuntimeError where the shapes do not broadcast, ValueError
    for an unknown reduction or another shape of weight. A weight that requires a gradient takes the stock operators.
    """
    if size_average is None and reduce is None and not is_dynamo_compiling():
        loss = choice.kernels.mse_loss(input, target, weight, reduction_code(reduction))
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.mse_loss(input, target, size_average, reduce, reduction, weight)
    check(input, target, weight)
    reduction = reduction_name("mse_loss", size_average, reduce, reduction)
    loss = None
    if not is_traced(input):
        loss = choice.kernels.mse_loss_broadcast(input, target, weight, REDUCTIONS[reduction])
        if loss is not None and target.shape != input.shape:
            warn_of_broadcasting(input, target, stacklevel=3)
    elif operators := traceable_loss(input, target, weight):
        loss = operators.mse_loss(input, target, weight, REDUCTIONS[reduction])
    return F.mse_loss(input, target, reduction=reduction, weight=weight) if loss is None else loss


def check(input, target, weight):
    """What the arguments must be."""
    expect_tensors("mse_loss", input=input, target=target, **({} if weight is None else {"weight": weight}))
    what = f"target that broadcasts with input {tuple(input.shape)}"
    expect(broadcast(input.shape, target.shape), "mse_loss", what, tuple(target.shape))
    if weight is not None:
        same = weight.shape == input.shape
        expect(same, "mse_loss", f"weight {tuple(input.shape)} as input", tuple(weight.shape), ValueError)
