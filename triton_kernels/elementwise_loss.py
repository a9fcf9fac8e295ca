"""mse_loss, binary_cross_entropy and binary_cross_entropy_with_logits: value and gradients in one pass."""

import torch
import triton.language as tl

from . import numerics as n
from . import rows as r
from .launch import blocks, device_function, kernel, launch
from .reduce import sum_rows, sum_to_size

# ---- the losses: value and both derivatives of an element, each operation as written --------------------------------
#
# mse_loss                                       (x - y)^2
# binary_cross_entropy                           (y - 1) log(1 - x) - y log(x), the logarithms not below -100
# binary_cross_entropy_with_logits               max(x, 0) - x y + log(1 + e^-|x|)
# ... with p, the weight of the positive class   (1 - y) x + (1 + (p - 1) y) log(1 + e^-x)


@device_function
def log_weight(y, p):
    return tl.fma(p - 1.0, y, 1.0)


@device_function
def softplus_of_negative(x):
    """log(1 + e^-x)"""
    return n.maximum(n.negative(x), 0.0) + n.log1p(n.exp(n.negative(tl.abs(x))))


@device_function
def value_of(x, y, p, LOSS: tl.constexpr):
    if LOSS == "mse_loss":
        d = x - y
        return d * d
    elif LOSS == "binary_cross_entropy":
        log_x, log_rest = n.maximum(n.log(x), -100.0), n.maximum(n.log1p(n.negative(x)), -100.0)
        return (y - 1.0) * log_rest - y * log_x
    elif p is None:
        return (n.maximum(x, 0.0) - x * y) + n.log1p(n.exp(n.negative(tl.abs(x))))
    else:
        return tl.fma(1.0 - y, x, log_weight(y, p) * softplus_of_negative(x))


@device_function
def input_slope(x, y, p, LOSS: tl.constexpr):
    if LOSS == "mse_loss":
        return (x - y) * 2.0
    elif LOSS == "binary_cross_entropy":  # (x - y) / (x (1 - x)), the denominator not below 1e-12
        return n.div(x - y, n.maximum((1.0 - x) * x, 1e-12))
    elif p is None:
        return n.sigmoid(x) - y
    else:  # (1 + (p - 1) y) sigmoid(x) - p y
        return tl.fma(log_weight(y, p), n.sigmoid(x), n.negative(p * y))


@device_function
def target_slope(x, y, p, LOSS: tl.constexpr):
    if LOSS == "mse_loss":
        return n.negative((x - y) * 2.0)
    elif LOSS == "binary_cross_entropy":  # not cut at 100: infinite at 0 and 1, as in torch
        return n.log1p(n.negative(x)) - n.log(x)
    elif p is None:
        return n.negative(x)
    else:
        return tl.fma(p - 1.0, softplus_of_negative(x), n.negative(x))


@device_function
def inside_unit_interval(x):
    return (x >= 0.0) & (x <= 1.0)


# ---- a program has segments of 4096 elements ------------------------------------------------------------------------


# loss = w value(x, y), dx = w input_slope(x, y) s, dy = w target_slope(x, y) s, s the gradient of the loss.
@kernel
def elementwise_loss_kernel(
    x_ptr, y_ptr, w_ptr, p_ptr, g_ptr, divisor_ptr, value_ptr, dx_ptr, dy_ptr, count,
    LOSS: tl.constexpr, EACH: tl.constexpr, MEAN: tl.constexpr, IN_ADVANCE: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """The values of EACH element, or their sums segment by segment; the gradients for the gradient g, None: 1.

    IN_ADVANCE: dx and dy hold those for 1.
    """
    if IN_ADVANCE:
        if r.is_one(g_ptr):
            return
    segment = r.own_rows(SHAPE)
    column = r.columns_of(0, SHAPE)
    i = segment * r.SUM_SEGMENT + column
    exists = i < count
    x, y = n.widen(tl.load(x_ptr + i, mask=exists)), n.widen(tl.load(y_ptr + i, mask=exists))
    p, w = None, tl.full((1, 1), 1.0, x.dtype)
    if p_ptr is not None:
        p = n.widen(tl.load(p_ptr + i, mask=exists))
    if w_ptr is not None:
        w = n.widen(tl.load(w_ptr + i, mask=exists))
    if value_ptr is not None:
        if LOSS == "binary_cross_entropy":
            tl.device_assert(~exists | (inside_unit_interval(x) & inside_unit_interval(y)), "outside of 0 to 1")
        value = value_of(x, y, p, LOSS) * w
        if EACH:
            tl.store(value_ptr + i, n.narrow(value, value_ptr.dtype.element_ty), mask=exists)
        else:
            sums = r.sum_tile(tl.where(exists, value, 0.0))
            tl.store(value_ptr + segment, sums, mask=segment * r.SUM_SEGMENT < count)
    s = tl.full((1, 1), 1.0, x.dtype)
    if g_ptr is not None:
        s = n.widen(tl.load(g_ptr + i, mask=exists) if EACH else tl.load(g_ptr))
    if MEAN:
        s = r.over_divisor(s, divisor_ptr, count)
    if dx_ptr is not None:
        dx = input_slope(x, y, p, LOSS) * w * s
        tl.store(dx_ptr + i, n.narrow(dx, dx_ptr.dtype.element_ty), mask=exists)
    if dy_ptr is not None:
        dy = target_slope(x, y, p, LOSS) * w * s
        tl.store(dy_ptr + i, n.narrow(dy, dy_ptr.dtype.element_ty), mask=exists)


# ---- launchers ------------------------------------------------------------------------------------------------------


def spread(t, sizes):
    """t broadcast to these sizes and contiguous; None stays."""
    return None if t is None else t.expand(sizes).contiguous()


def check_probabilities(input, target):
    """On a device the kernel's assertion is all there is: a message would have to wait for it."""
    for name, t in (("input", input), ("target", target)):
        outside = ~((t >= 0) & (t <= 1))
        if outside.any():
            got = t[outside][0].item()
            raise RuntimeError(f"binary_cross_entropy: expected {name} between 0 and 1, got {got:g}")


def evaluate(input, target, weight, pos_weight, loss, reduction, mask, grad, wants_value, into=None):
    """(value, dinput, dtarget), None where not wanted; reduction 0, 1, 2 is none, mean, sum.

    ``into``: dinput and dtarget for a ``grad`` of 1, to be written over where it is another number.
    """
    sizes = torch.broadcast_shapes(input.shape, target.shape)
    each, mean = reduction == 0, reduction == 1
    x, y, w, p = (spread(t, sizes) for t in (input, target, weight, pos_weight))
    count = x.numel()
    shape, programs, _ = r.row_shape(blocks(count, r.SEGMENT), min(count, r.SEGMENT))
    values, divisor = None, None
    if wants_value:
        values = x.new_empty(
            sizes if each else blocks(count, r.SEGMENT), dtype=x.dtype if each else r.computed_in(x.dtype)
        )
    if (
        mean and loss == "mse_loss" and weight is not None
    ):  # as stock has it: the others divide by the number of elements
        divisor = sum_rows(weight.reshape(1, -1), r.computed_in(x.dtype))
    dx, dy = into or (x.new_empty(sizes) if wanted else None for wanted in mask)
    g = None if grad is None else grad.contiguous()
    launch(
        elementwise_loss_kernel, (programs,), x, y, w, p, g, divisor, values, dx, dy, count,
        LOSS=loss, EACH=each, MEAN=mean, IN_ADVANCE=into is not None, SHAPE=shape, num_warps=8,
    )  # fmt: skip
    if wants_value and not each:
        by = None if not mean else count if divisor is None else divisor
        values = sum_rows(values[None], x.dtype, by).view(())
    dx = None if dx is None else sum_to_size(dx, input.shape)
    dy = None if dy is None else sum_to_size(dy, target.shape)
    return values, dx, dy


def elementwise_loss_forward(input, target, weight, pos_weight, loss, reduction, mask):
    if loss == "binary_cross_entropy" and not input.is_cuda:
        check_probabilities(input, target)
    return evaluate(input, target, weight, pos_weight, loss, reduction, mask, None, True)


def elementwise_loss_inference(input, target, weight, pos_weight, loss, reduction):
    return elementwise_loss_forward(input, target, weight, pos_weight, loss, reduction, (False, False))[0]


def elementwise_loss_backward(grad, input, target, weight, pos_weight, loss, reduction, mask):
    return evaluate(input, target, weight, pos_weight, loss, reduction, mask, grad, False)[1:]


def elementwise_loss_backward_into(grad, dinput, dtarget, input, target, weight, pos_weight, loss, reduction):
    """Over what elementwise_loss_forward left in dinput and dtarget, one of which may be None."""
    mask, into = (False, False), (dinput, dtarget)
    evaluate(input, target, weight, pos_weight, loss, reduction, mask, grad, False, into)
