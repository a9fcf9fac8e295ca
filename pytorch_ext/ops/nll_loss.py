"""nll_loss: the negative log likelihood of class indices, given log-probabilities."""

import torch
import torch.nn.functional as F

from ..triton_path import launchers
from .checks import expect, expect_alike, expect_tensors
from .composition import with_composed_derivative
from .losses import REDUCTIONS, reduction_code, reduction_name, traceable_loss
from .paths import choice, is_dynamo_compiling, is_traced, overridden, register_fake


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    """``torch.nn.functional.nll_loss``.

    input ``(N, C, d1, ...)``, ``(N, C)`` or ``(C,)``, target ``(N, d1, ...)``, ``(N,)`` or ``()`` of class indices.
    Raises IndexError for a class index outside [0, C) that is not ``ignore_index``, before anything is computed;
    ValueError for other batch sizes or an unknown reduction, RuntimeError for other shapes and dtypes.
    """
    if size_average is None and reduce is None and not is_dynamo_compiling():
        loss = choice.kernels.nll_loss(input, target, weight, reduction_code(reduction), ignore_index)
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)
    reduction = reduction_name("nll_loss", size_average, reduce, reduction)
    check_tensors("nll_loss", input, target, weight)
    check_class_indices("nll_loss", input, target, weight)
    loss = None
    if not is_traced(input):
        loss = choice.kernels.nll_loss(input, target, weight, REDUCTIONS[reduction], ignore_index)
    elif operators := traceable_loss(input, input, *(() if weight is None else (weight,))):
        loss = operators.nll_loss(input, target, weight, REDUCTIONS[reduction], ignore_index)
    if loss is not None:
        return loss
    return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)


def check_tensors(op, input, target, weight):
    """Tensors on one device; an input that has classes, and a weight for each of them."""
    expect_tensors(op, input=input, target=target, **({} if weight is None else {"weight": weight}))
    expect_alike(op, dtype=False, input=input, target=target, weight=weight)
    error = IndexError if op == "cross_entropy" else ValueError
    expect(input.dim() >= 1, op, "input (N, C, ...) or (C,)", tuple(input.shape), error)
    if weight is not None:
        classes = input.shape[min(1, input.dim() - 1)]
        expect(weight.shape == (classes,), op, f"weight ({classes},), one for each class", tuple(weight.shape))


def check_class_indices(op, input, target, weight):
    """One class index for every row of the input, and a weight of the input's dtype."""
    if input.dim() == 1:
        expected, given = "target () or (1,) for input (C,)", tuple(target.shape)
        expect(target.dim() <= 1, op, expected, given)
        expect(target.numel() == 1, op, expected, given, ValueError)
    else:
        shape = (input.shape[0], *input.shape[2:])
        expected, given = f"target {shape} for input {tuple(input.shape)}", tuple(target.shape)
        expect(target.dim() >= 1 and target.shape[0] == shape[0], op, expected, given, ValueError)
        expect(given == shape, op, expected, given)
    indices = (torch.int64, torch.uint8) if input.dim() <= 2 else (torch.int64,)
    expect(target.dtype in indices, op, "target of class indices, torch.int64", target.dtype)
    expect_alike(op, input=input, weight=weight)


class NllLossFunction(torch.autograd.Function):
    """nll_loss on the Triton path."""

    @staticmethod
    def forward(ctx, input, target, weight, reduction, ignore_index):
        ctx.save_for_backward(input, target, weight)
        ctx.options = reduction, ignore_index
        return launchers.nll_loss_forward(input, target, weight, reduction, ignore_index)

    @staticmethod
    def backward(ctx, grad):
        return nll_loss_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


def nll_loss_backward(grad, input, target, weight, reduction, ignore_index):
    """The input's gradient on the Triton path, differentiable by ``grad``, all that it depends on differentiably."""

    def kernel(grad, input, weight):
        return launchers.nll_loss_backward(grad, input, target, weight, reduction, ignore_index)

    def compose(grad, input, weight):
        q, scale = class_distribution(grad, input, target, weight, reduction, ignore_index)
        return -q * scale

    return with_composed_derivative(kernel, compose, grad, input.detach(), weight)


def class_distribution(grad, input, target, weight, reduction, ignore_index, label_smoothing=0.0):
    """(q, scale) in stock operators: the target as a distribution over the classes, and the gradient of a row's value.

    cross_entropy is the sum of q (-log p) over a row, nll_loss the sum of q (-x). q has the input's shape and is zero
    in rows that are ignored; scale broadcasts to it.
    """
    dim = min(1, input.dim() - 1)
    classes = input.shape[dim]
    by_class, counts = None, None
    if weight is not None:
        by_class = weight.reshape([-1 if d == dim else 1 for d in range(input.dim())])
    if target.is_floating_point():
        q, divisor = target, input.numel() // classes
    else:
        index = target.reshape(1) if input.dim() == 1 else target.unsqueeze(dim)
        counts = index != ignore_index
        q = torch.zeros_like(input).scatter(dim, torch.where(counts, index, 0).long(), 1)
        divisor = (q * counts if by_class is None else q * by_class * counts).sum()
    if label_smoothing > 0:
        q = q * (1 - label_smoothing) + label_smoothing / classes
    if by_class is not None:
        q = q * by_class
    if counts is not None:
        q = q * counts
    scale = grad / divisor if reduction == REDUCTIONS["mean"] else grad
    return q, scale.unsqueeze(dim) if reduction == REDUCTIONS["none"] else scale


@register_fake("nll_loss_forward")
def _(input, target, weight, reduction, ignore_index):
    each = reduction == REDUCTIONS["none"] and input.dim() > 1
    return input.new_empty(target.shape if each else ())


@register_fake("nll_loss_backward")
def _(grad, input, target, weight, reduction, ignore_index):
    return laid_out_as(input, input)


def laid_out_as(input, t):
    """An empty tensor of t's sizes as kernels write it: the classes contiguous where they are in the input."""
    moved = input.movedim(1, -1) if input.dim() > 2 else input
    if not input.is_contiguous() and moved.is_contiguous():
        return t.new_empty(moved.shape).movedim(-1, 1)
    return t.new_empty(t.shape)
