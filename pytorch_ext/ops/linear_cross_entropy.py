"""linear_cross_entropy: the loss of a last linear layer in chunks of rows; its logits are never stored whole."""

import torch
import torch.nn.functional as F

from ..triton_path import launchers
from .checks import expect, expect_alike, expect_tensors, is_autocast
from .composition import with_composed_derivative
from .cross_entropy import cross_entropy
from .linear import linear
from .losses import REDUCTION_NAMES, REDUCTIONS, reduction_code, reduction_name
from .nll_loss import class_distribution
from .paths import choice, is_dynamo_compiling, is_traced, overridden, products_are_ieee, register_fake, traceable

IGNORED = -100  # the class index that cross_entropy ignores unless told otherwise
OPTIONS = getattr(torch.nn, "LinearCrossEntropyOptions", ())  # torch's class of them, from 2.13 on


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """``torch.nn.functional.linear_cross_entropy``, which torch has from 2.13 on: ``cross_entropy(linear(...), ...)``.

    input ``(N, F)`` or ``(F,)``, linear_weight ``(C, F)`` or ``(C, d1, ..., F)``, linear_bias the same without F;
    target ``(N, d1, ...)`` of class indices or ``(N, C, d1, ...)`` of class probabilities. It always runs in chunks of
    rows, with the bits of the two functions one after the other, and has derivatives of every order. The gradients are
    computed with the loss, for a loss gradient of 1, and multiplied by it. ``options`` are about stock's own chunks:
    nothing depends on them here, sums are float32 and a graph can be retained. Raises RuntimeError where shapes or
    dtypes do not fit, or an ignore_index is given for probabilities; IndexError for a class index out of range;
    ValueError for an unknown reduction; AttributeError for other options. A target or a weight that requires a gradient
    takes the two functions.
    """
    if options is not None:
        what, got = "options to be LinearCrossEntropyOptions", type(options).__name__
        expect(isinstance(options, OPTIONS), "linear_cross_entropy", what, got, AttributeError)
    given = IGNORED if ignore_index is None else ignore_index
    if not is_dynamo_compiling() and (ignore_index is None or not is_of_probabilities(target)):
        code = reduction_code(reduction)
        loss = choice.kernels.linear_cross_entropy(
            input, linear_weight, target, linear_bias, weight, code, given, label_smoothing, None
        )
        if loss is not None:
            return loss
    tensors = input, linear_weight, target, linear_bias, weight
    if overridden(*tensors) and hasattr(F, "linear_cross_entropy"):
        settings = {"linear_bias": linear_bias, "weight": weight, "reduction": reduction, "ignore_index": ignore_index}
        settings |= {"label_smoothing": label_smoothing, "options": options}
        return F.linear_cross_entropy(input, linear_weight, target, **settings)
    check(*tensors, ignore_index)
    reduction = reduction_name("linear_cross_entropy", None, None, reduction)
    arguments = *tensors, REDUCTIONS[reduction], given, label_smoothing, None
    if is_traced(*tensors) and (operators := operators_for(*tensors, label_smoothing)):
        return operators.linear_cross_entropy(*arguments)
    return composed(*arguments)


def is_of_probabilities(target):
    return isinstance(target, torch.Tensor) and target.is_floating_point()


def composed(input, linear_weight, target, bias, weight, code, ignored, smoothing, dtype=None):
    """The two functions one after the other."""
    reduction = REDUCTION_NAMES[code]
    features, shape = linear_weight.shape[-1], linear_weight.shape[:-1]
    logits = linear(input, linear_weight.reshape(-1, features), None if bias is None else bias.reshape(-1))
    logits = logits.reshape(*input.shape[:-1], *shape)
    return cross_entropy(logits, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=smoothing)


def check(input, linear_weight, target, linear_bias, weight, ignore_index):
    """What the arguments must be; what cross_entropy asks of them is checked there."""
    op, shape = "linear_cross_entropy", tuple(linear_weight.shape) if isinstance(linear_weight, torch.Tensor) else None
    given = {"linear_bias": linear_bias, "weight": weight}
    given = {name: value for name, value in given.items() if value is not None}
    expect_tensors(op, input=input, linear_weight=linear_weight, target=target, **given)
    expect_alike(op, input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    expect(1 <= input.dim() <= 2, op, "input (N, F) or (F,)", tuple(input.shape))
    expect(len(shape) >= 2, op, "linear_weight (C, F) or (C, d1, ..., F)", shape)
    expect(input.shape[-1] == shape[-1], op, f"input (..., {shape[-1]}) for linear_weight {shape}", tuple(input.shape))
    if linear_bias is not None:
        expect(linear_bias.shape == shape[:-1], op, f"linear_bias {shape[:-1]}", tuple(linear_bias.shape))
    expect(input.dim() == 2 or len(shape) == 2, op, f"input (N, F) for linear_weight {shape}", tuple(input.shape))
    if target.shape == (*input.shape[:-1], *shape[:-1]):
        expect(ignore_index is None, op, "no ignore_index with class probabilities", ignore_index)


def operators_for(input, linear_weight, target, linear_bias, weight, label_smoothing):
    """The registered operators where they cover a traced call, else None; target and weight are constants to them."""
    constants = [weight, *([target] if target.is_floating_point() else [])]
    if any(
        t is not None and (t.requires_grad or (t.dtype == torch.float64) != (input.dtype == torch.float64))
        for t in constants
    ):
        return None
    autocast = is_autocast(input)
    if not autocast and any(t is not None and t.dtype != input.dtype for t in constants):
        return None
    sizes = (*input.shape[:-1], *linear_weight.shape[0 if target.is_floating_point() else 1 : -1])
    fits = target.shape == sizes and (target.is_floating_point() or target.dtype == torch.int64)
    fits = fits and (weight is None or weight.shape == linear_weight.shape[:1]) and not label_smoothing > 1
    if not fits or not products_are_ieee(input):
        return None
    return traceable(input, linear_weight, linear_bias, *constants)


class LinearCrossEntropyFunction(torch.autograd.Function):
    """linear_cross_entropy on the Triton path."""

    @staticmethod
    def forward(ctx, input, linear_weight, target, linear_bias, weight, *options):
        in_advance = options[0] != REDUCTIONS["none"]
        mask = [in_advance and ctx.needs_input_grad[i] for i in (0, 1, 3)]
        tensors = input, linear_weight, target, linear_bias, weight
        if any(mask):
            loss, *gradients = launchers.linear_cross_entropy_forward(*tensors, *options, mask)
        else:
            loss, gradients = launchers.linear_cross_entropy_inference(*tensors, *options), [None] * 3
        ctx.save_for_backward(*tensors, *gradients)
        ctx.options = options[:3]  # reduction, ignore_index, label_smoothing
        return loss

    @staticmethod
    def backward(ctx, grad):
        tensors, gradients = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        mask = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        if torch.is_grad_enabled() or ctx.options[0] == REDUCTIONS["none"]:
            gradients = linear_cross_entropy_backward(grad, *tensors, *ctx.options, mask)
        else:
            gradients = [None if t is None else t * grad for t in gradients]
        return *gradients[:2], None, gradients[2], *[None] * 5


def linear_cross_entropy_backward(grad, input, linear_weight, target, linear_bias, weight, *options_and_mask):
    """The gradients of the three arguments that the mask chooses, on the Triton path, differentiable."""

    def kernel(*tensors):
        return launchers.linear_cross_entropy_backward(*tensors, *options_and_mask)

    def compose(*tensors):
        return composed_gradients(*tensors, *options_and_mask[:3])

    return with_composed_derivative(kernel, compose, grad, input, linear_weight, target, linear_bias, weight)


def composed_gradients(grad, input, linear_weight, target, bias, weight, reduction, ignore_index, label_smoothing):
    """The three gradients in stock operators."""
    x, W = input.reshape(-1, input.shape[-1]), linear_weight.reshape(-1, linear_weight.shape[-1])
    if input.dim() == 1:
        target, grad = target.unsqueeze(0), grad.unsqueeze(0) if reduction == REDUCTIONS["none"] else grad
    logits = F.linear(x, W, None if bias is None else bias.reshape(-1)).reshape(-1, *linear_weight.shape[:-1])
    q, scale = class_distribution(grad, logits, target, weight, reduction, ignore_index, label_smoothing)
    dz = ((torch.softmax(logits, 1) * q.sum(1, keepdim=True) - q) * scale).reshape(-1, W.shape[0])
    dbias = None if bias is None else dz.sum(0).reshape(bias.shape)
    return (dz @ W).reshape(input.shape), (dz.t() @ x).reshape(linear_weight.shape), dbias


@register_fake("linear_cross_entropy_inference")
def fake_loss(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, dtype):
    shape = (*input.shape[:-1], *linear_weight.shape[1:-1]) if reduction == REDUCTIONS["none"] else ()
    return input.new_empty(shape, dtype=dtype or input.dtype)


@register_fake("linear_cross_entropy_forward")
def _(input, linear_weight, target, linear_bias, *options):
    *others, mask = options
    loss = fake_loss(input, linear_weight, target, linear_bias, *others)
    return loss, *fake_gradients(input, linear_weight, linear_bias, mask)


@register_fake("linear_cross_entropy_backward")
def _(grad, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, mask):
    return fake_gradients(input, linear_weight, linear_bias, mask)


def fake_gradients(*arguments):
    *tensors, mask = arguments
    return tuple(
        t.new_empty(t.shape) if wanted and t is not None else None for t, wanted in zip(tensors, mask, strict=True)
    )
