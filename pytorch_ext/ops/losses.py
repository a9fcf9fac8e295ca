"""What the losses share: reductions, and the operators behind the element-wise ones."""

import functools
import warnings

import torch
from torch.nn import _reduction

from ..triton_path import kernels, launchers
from .checks import expands, expect, is_autocast
from .composition import with_composed_derivative
from .one_pass import InAdvance, gradients_of, holds_numbers
from .paths import register_fake, traceable

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # at::Reduction's numbers


REDUCTION_NAMES = {code: name for name, code in REDUCTIONS.items()}


def as_kernels_are_called(functions):
    """Rows and losses of a namespace like ``torch.nn.functional``, with the arguments of the kernels' namespaces."""
    f, names = functions, REDUCTION_NAMES
    return {
        "softmax": lambda x, dim, dtype=None: f.softmax(x, dim, dtype=dtype),
        "log_softmax": lambda x, dim, dtype=None: f.log_softmax(x, dim, dtype=dtype),
        "mse_loss": lambda x, y, w, code: f.mse_loss(x, y, reduction=names[code], weight=w),
        "binary_cross_entropy": lambda x, y, w, code: f.binary_cross_entropy(x, y, w, reduction=names[code]),
        "binary_cross_entropy_with_logits": lambda x, y, w, p, code: f.binary_cross_entropy_with_logits(
            x, y, w, reduction=names[code], pos_weight=p
        ),
        "cross_entropy": lambda x, y, w, code, ignored, smoothing: f.cross_entropy(
            x, y, w, ignore_index=ignored, reduction=names[code], label_smoothing=smoothing
        ),
        "linear_cross_entropy": lambda x, v, y, b, w, code, ignored, smoothing, _: f.linear_cross_entropy(
            x,
            v,
            y,
            linear_bias=b,
            weight=w,
            reduction=names[code],
            ignore_index=ignored_or_none(y, ignored),
            label_smoothing=smoothing,
        ),
        "nll_loss": lambda x, y, w, code, ignored: f.nll_loss(x, y, w, ignore_index=ignored, reduction=names[code]),
    }


def ignored_or_none(target, ignore_index):
    """What linear_cross_entropy is given: nothing for class probabilities."""
    return None if target.is_floating_point() else ignore_index


def reduction_code(reduction):
    """The number of a reduction's name, None where it is no such name."""
    return REDUCTIONS.get(reduction) if type(reduction) is str else None


def reduction_name(op, size_average, reduce, reduction):
    """The reduction meant. The deprecated flags decide where they are given, with stock's warning."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction == "elementwise_mean":  # the old name of mean
        _reduction.get_enum(reduction)  # warns
        reduction = "mean"
    known = isinstance(reduction, str) and reduction in REDUCTIONS
    expect(known, op, f"reduction one of {', '.join(REDUCTIONS)}", reduction, ValueError)
    return reduction


def expect_broadcastable(op, shape, **weights):
    """Every weight given broadcasts to ``shape``."""
    for name, weight in weights.items():
        if weight is not None:
            what = f"{name} that broadcasts to {tuple(shape)}"
            expect(expands(weight.shape, shape), op, what, tuple(weight.shape))


def warn_of_broadcasting(input, target, stacklevel=1):
    """Stock's warning."""
    warnings.warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
        stacklevel=stacklevel + 1,
    )


def traceable_loss(input, target, *weights):
    """:func:`traceable`, for tensors of one dtype, or of one after autocast; a weight is a constant to the kernels."""
    given = [input, target, *(w for w in weights if w is not None)]
    dtypes = {t.dtype for t in given}
    if len(dtypes) > 1 and (torch.float64 in dtypes or not is_autocast(input)):
        return None
    return None if any(w.requires_grad for w in given[2:]) else traceable(*given)


# ---- on the Triton path ---------------------------------------------------------------------------------------------


class ElementwiseLossFunction(torch.autograd.Function):
    """The element-wise loss of that name."""

    @staticmethod
    def forward(ctx, input, target, weight, pos_weight, loss, reduction):
        in_advance = reduction != REDUCTIONS["none"] and input.shape == target.shape and holds_numbers(input)
        mask = [in_advance and needed for needed in ctx.needs_input_grad[:2]]
        arguments = input, target, weight, pos_weight, loss, reduction
        if any(mask):
            value, *gradients = launchers.elementwise_loss_forward(*arguments, mask)
        else:
            value, gradients = launchers.elementwise_loss_inference(*arguments), [None, None]
        ctx.in_advance, ctx.options = InAdvance(gradients), (loss, reduction)
        ctx.save_for_backward(input, target, weight, pos_weight)
        return value

    @staticmethod
    def backward(ctx, grad):
        arguments = *ctx.saved_tensors, *ctx.options
        gradients = gradients_of(
            ctx.in_advance,
            grad,
            ctx.needs_input_grad[:2],
            lambda *into: kernels.elementwise_loss.elementwise_loss_backward_into(*into, *arguments),
            lambda mask: elementwise_loss_backward(grad, *arguments, mask),
        )
        return *gradients, None, None, None, None


def elementwise_loss_backward(grad, input, target, weight, pos_weight, loss, reduction, mask):
    """The gradients of input and target that the mask chooses, differentiable."""
    kernel = functools.partial(launchers.elementwise_loss_backward, loss=loss, reduction=reduction, mask=mask)
    compose = functools.partial(composed_gradients, loss=loss, reduction=reduction)
    return with_composed_derivative(kernel, compose, grad, input, target, weight, pos_weight)


def composed_gradients(grad, input, target, weight, pos_weight, loss, reduction):
    """Both gradients in stock operators."""
    scale = grad
    if reduction == REDUCTIONS["mean"]:
        by_weights = weight is not None and loss == "mse_loss"
        scale = grad / (weight.sum() if by_weights else (input - target).numel())
    if weight is not None:
        scale = scale * weight
    slopes = composed_slopes(input, target, pos_weight, loss)
    return tuple((slope * scale).sum_to_size(t.shape) for slope, t in zip(slopes, (input, target), strict=True))


def composed_slopes(x, y, pos_weight, loss):
    """(d value / d input, d value / d target) of every element in stock operators."""
    if loss == "mse_loss":
        return 2 * (x - y), -2 * (x - y)
    if loss == "binary_cross_entropy":
        return (x - y) / ((1 - x) * x).clamp_min(1e-12), torch.log1p(-x) - torch.log(x)
    if pos_weight is None:
        return torch.sigmoid(x) - y, -x
    extra = pos_weight - 1
    slope = (1 + extra * y) * torch.sigmoid(x) - pos_weight * y
    return slope, -extra * torch.nn.functional.logsigmoid(x) - x


@register_fake("elementwise_loss_inference")
def fake_loss(input, target, weight, pos_weight, loss, reduction):
    if input.shape != target.shape:  # where a call is traced; eager ones warn in mse_loss
        warn_of_broadcasting(input, target)
    return input.new_empty(torch.broadcast_shapes(input.shape, target.shape) if reduction == REDUCTIONS["none"] else ())


@register_fake("elementwise_loss_forward")
def _(input, target, weight, pos_weight, loss, reduction, mask):
    return (
        fake_loss(input, target, weight, pos_weight, loss, reduction),
        input.new_empty(input.shape) if mask[0] else None,
        target.new_empty(target.shape) if mask[1] else None,
    )


@register_fake("elementwise_loss_backward")
def _(grad, input, target, weight, pos_weight, loss, reduction, mask):
    return input.new_empty(input.shape) if mask[0] else None, target.new_empty(target.shape) if mask[1] else None
