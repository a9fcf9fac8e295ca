"""cross_entropy: log_softmax and nll_loss as one; in training, value and gradient in one pass over the logits."""

import functools

import torch
import torch.nn.functional as F

from ..triton_path import kernels, launchers
from .checks import expect
from .composition import with_composed_derivative
from .losses import REDUCTIONS, reduction_code, reduction_name, traceable_loss
from .nll_loss import check_class_indices, check_tensors, class_distribution, laid_out_as
from .one_pass import InAdvance, gradients_of, holds_numbers
from .paths import choice, is_dynamo_compiling, is_traced, overridden, register_fake


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
    if size_average is None and reduce is None and not is_dynamo_compiling():
        code = reduction_code(reduction)
        loss = choice.kernels.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    reduction = reduction_name("cross_entropy", size_average, reduce, reduction)
    check(input, target, weight, ignore_index, label_smoothing)
    loss, code = None, REDUCTIONS[reduction]
    if not is_traced(input):
        loss = choice.kernels.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
    elif operators := traceable_loss(input, _probabilities_or(input, target), *(() if weight is None else (weight,))):
        loss = operators.cross_entropy(input, target, weight, code, ignore_index, label_smoothing)
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


class CrossEntropyFunction(torch.autograd.Function):
    """cross_entropy on the Triton path."""

    @staticmethod
    def forward(ctx, input, target, weight, *options):
        in_advance = options[0] != REDUCTIONS["none"] and ctx.needs_input_grad[0] and holds_numbers(input)
        if in_advance:
            loss, dinput = launchers.cross_entropy_forward(input, target, weight, *options, True)
        else:
            loss, dinput = launchers.cross_entropy_inference(input, target, weight, *options), None
        ctx.in_advance = InAdvance([dinput, None])
        ctx.save_for_backward(input, target, weight)
        ctx.options = options  # reduction, ignore_index, label_smoothing
        return loss

    @staticmethod
    def backward(ctx, grad):
        arguments = *ctx.saved_tensors, *ctx.options
        gradients = gradients_of(
            ctx.in_advance,
            grad,
            ctx.needs_input_grad[:2],
            lambda grad, dinput, _: kernels.cross_entropy.cross_entropy_backward_into(grad, dinput, *arguments),
            lambda mask: cross_entropy_backward(grad, *arguments, mask),
        )
        return *gradients, None, None, None, None


def cross_entropy_backward(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask):
    """The gradients of input and target that the mask chooses, on the Triton path, differentiable."""
    options = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    kernel = functools.partial(launchers.cross_entropy_backward, mask=mask, **options)
    compose = functools.partial(composed_cross_entropy_gradients, mask=mask, **options)
    return with_composed_derivative(kernel, compose, grad, input, target, weight)


def composed_cross_entropy_gradients(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask):
    """Both gradients in stock operators."""
    dim = min(1, input.dim() - 1)
    q, scale = class_distribution(grad, input, target, weight, reduction, ignore_index, label_smoothing)
    dinput = (torch.softmax(input, dim) * q.sum(dim, keepdim=True) - q) * scale
    if not mask[1]:
        return dinput, None
    slope = -torch.log_softmax(input, dim) * scale
    if label_smoothing > 0:
        slope = slope * (1 - label_smoothing)
    if weight is not None:
        slope = slope * weight.reshape([-1 if d == dim else 1 for d in range(input.dim())])
    return dinput, slope


@register_fake("cross_entropy_inference")
def fake_loss(input, target, weight, reduction, ignore_index, label_smoothing):
    shape = ()
    if reduction == REDUCTIONS["none"] and input.dim() > 1:
        shape = (input.shape[0], *input.shape[2:])
    return input.new_empty(shape)


@register_fake("cross_entropy_forward")
def _(input, *options):
    *others, with_gradient = options
    return fake_loss(input, *others), laid_out_as(input, input) if with_gradient else None


@register_fake("cross_entropy_backward")
def _(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask):
    return (
        laid_out_as(input, input) if mask[0] else None,
        laid_out_as(input, target) if mask[1] and target.is_floating_point() else None,
    )
