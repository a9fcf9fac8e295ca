"""binary_cross_entropy: of probabilities, value and gradients in one pass."""

import torch.nn.functional as F

from .checks import expect, expect_alike, expect_tensors
from .losses import REDUCTIONS, expect_broadcastable, reduction_code, reduction_name, traceable_loss
from .paths import choice, is_dynamo_compiling, is_traced, overridden


def binary_cross_entropy(input, target, weight=None, size_average=None, reduce=None, reduction="mean"):
    """``torch.nn.functional.binary_cross_entropy``.

    input and target have one shape and dtype, weight broadcasts to it. Raises RuntimeError where an input or a target
    lies outside [0, 1] or is NaN, where dtypes differ or weight does not broadcast; ValueError where the shapes of
    input and target differ or the reduction is unknown.
    """
    if size_average is None and reduce is None and not is_dynamo_compiling():
        loss = choice.kernels.binary_cross_entropy(input, target, weight, reduction_code(reduction))
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)
    check("binary_cross_entropy", input, target, weight=weight)
    expect_alike("binary_cross_entropy", input=input, target=target)
    reduction = reduction_name("binary_cross_entropy", size_average, reduce, reduction)
    loss = None
    if not is_traced(input):
        loss = choice.kernels.binary_cross_entropy(input, target, weight, REDUCTIONS[reduction])
    elif operators := traceable_loss(input, target, weight):
        loss = operators.binary_cross_entropy(input, target, weight, REDUCTIONS[reduction])
    if loss is not None:
        return loss
    return F.binary_cross_entropy(input, target, weight, reduction=reduction)


def check(op, input, target, **weights):
    """What the arguments must be, here and in the loss with logits."""
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    expect_tensors(op, input=input, target=target, **weights)
    same = target.shape == input.shape
    expect(same, op, f"target {tuple(input.shape)} as input", tuple(target.shape), ValueError)
    expect_broadcastable(op, input.shape, **weights)
