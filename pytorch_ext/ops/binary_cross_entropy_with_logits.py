"""binary_cross_entropy_with_logits: the sigmoid is part of the loss, value and gradients in one pass."""

import torch.nn.functional as F

from .binary_cross_entropy import check
from .losses import REDUCTIONS, reduction_code, reduction_name, traceable_loss
from .paths import choice, is_dynamo_compiling, is_traced, overridden

OP = "binary_cross_entropy_with_logits"


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """``torch.nn.functional.binary_cross_entropy_with_logits``.

    input (logits) and target have one shape, weight and pos_weight broadcast to it. Raises ValueError where the shapes
    of input and target differ or the reduction is unknown, RuntimeError where a weight does not broadcast.
    """
    if size_average is None and reduce is None and not is_dynamo_compiling():
        code = reduction_code(reduction)
        loss = choice.kernels.binary_cross_entropy_with_logits(input, target, weight, pos_weight, code)
        if loss is not None:
            return loss
    if overridden(input, target, weight, pos_weight):
        return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)
    check(OP, input, target, weight=weight, pos_weight=pos_weight)
    reduction = reduction_name(OP, size_average, reduce, reduction)
    loss = None
    if not is_traced(input):
        loss = choice.kernels.binary_cross_entropy_with_logits(input, target, weight, pos_weight, REDUCTIONS[reduction])
    elif operators := traceable_loss(input, target, weight, pos_weight):
        loss = operators.binary_cross_entropy_with_logits(input, target, weight, pos_weight, REDUCTIONS[reduction])
    if loss is not None:
        return loss
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)
