"""cross_entropy: log_softmax and nll_loss as one; in training, value and gradient in one pass over the logits."""

import torch
import torch.nn.functional as F

from .. import native
from .checks import expect
from .losses import REDUCTIONS, reduction_name, traceable_loss
from .nll_loss import check_class_indices, check_tensors
from .paths import choice, is_dynamo_compiling, overridden


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """``torch.nn.functional.cross_entropy``.

    input ``(N, C, d1, ...)``, ``(N, C)`` or ``(C,)``; target has the same shape (class probabilities) or that shape
    without C (class indices). Raises IndexError for a class index outside [0, C) that is not ``ignore_index``, before
    anything is computed; ValueError for other batch sizes or an unknown reduction, RuntimeError for other shapes and
    dtypes. Probabilities of another dtype than the input, and a weight that requires a gradient, take the stock
    operators.
    """
    compiling = is_dynamo_compiling()
    if size_average is None and reduce is None and not compiling:
        code = REDUCTIONS.get(reduction)
        loss = choice.kernels.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    reduction = reduction_name("cross_entropy", size_average, reduce, reduction)
    check(input, target, weight, ignore_index, label_smoothing)
    loss, code = None, REDUCTIONS[reduction]
    if not compiling:
        loss = choice.kernels.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
    elif traceable_loss(input, _probabilities_or(input, target), *(() if weight is None else (weight,))):
        loss = torch.ops.pytorch_ext.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
    if loss is not None:
        return loss
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _probabilities_or(input, target):
    return target if target.is_floating_point() else input


def check(input, target, weight, ignore_index, label_smoothing):
    """What the arguments must be."""
    check_tensors("cross_entropy", input, target, weight)
    expect(not label_smoothing > 1, "cross_entropy", "label_smoothing between 0 and 1", label_smoothing)
    if target.shape == input.shape:
        probabilities = "target of class probabilities, a floating-point dtype, for a target of the input's shape"
        expect(target.is_floating_point(), "cross_entropy", probabilities, target.dtype)
        expect(ignore_index < 0, "cross_entropy", "no ignore_index with class probabilities", ignore_index)
    else:
        check_class_indices("cross_entropy", input, target, weight)


if native.library is not None:

    @torch.library.register_fake("pytorch_ext::cross_entropy_forward")
    def _(input, target, weight, reduction, ignore_index, label_smoothing, with_gradient):
        shape = ()
        if reduction == REDUCTIONS["none"] and input.dim() > 1:
            shape = (input.shape[0], *input.shape[2:])
        return input.new_empty(shape), input.new_empty(input.shape) if with_gradient else None

    @torch.library.register_fake("pytorch_ext::cross_entropy_backward")
    def _(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask):
        return (
            input.new_empty(input.shape) if mask[0] else None,
            target.new_empty(target.shape) if mask[1] and target.is_floating_point() else None,
        )
