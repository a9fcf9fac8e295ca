"""cross_entropy: log_softmax and nll_loss as one, value and gradients in one pass over the logits.

A class index stands for a distribution over the classes: 1 at the target. Smoothed, eps / C is spread over all classes
and 1 - eps kept; a class weight is a factor of its class. With q the distribution that results, and p = softmax(x), the
loss of a row is the sum of q (-log p), and its gradient by x is p (sum of q) - q.
"""

import torch
import triton.language as tl

from . import numerics as n
from . import rows as r
from .launch import device_function, kernel, launch
from .nll_loss import class_operands, load_class_weights, load_targets, loss_sizes, reduced
from .reduce import sum_rows


@device_function
def minus_log(x, m, log_sum, column, row):
    return n.negative((r.elements(x, column, row, -n.INFINITY) - m) - log_sum)


@device_function
def weights_of(weight_ptr, column, row):
    exists, classes, inner = row
    return n.widen(tl.load(weight_ptr + column, mask=column < classes, other=0.0))


@device_function
def smooth_term(given, column):
    """-log p of every class, times its weight."""
    x, m, log_sum, weight_ptr, row = given
    exists, classes, inner = row
    term = minus_log(x, m, log_sum, column, row)
    if weight_ptr is not None:
        term = weights_of(weight_ptr, column, row) * term
    return tl.where(column < classes, term, 0.0)


@device_function
def row_scale(g_ptr, divisor_ptr, number, rows, like, EACH: tl.constexpr, MEAN: tl.constexpr):
    """The gradient of a row's loss; where there is none, 1."""
    scale = tl.full(like.shape, 1.0, like.dtype)
    if g_ptr is not None:
        scale = scale * n.widen(tl.load(g_ptr + number, mask=number < rows) if EACH else tl.load(g_ptr))
    if MEAN:
        scale = r.over_divisor(scale, divisor_ptr, rows)
    return scale


# ---- class indices --------------------------------------------------------------------------------------------------


# loss = w (log(sum of e) - (x[t] - m)) for the class t, e = exp(x - m); dx = (p (sum of q) - q) s, p = e / (sum of e),
# with q = w at t and 0 elsewhere, s the gradient of the row's loss. SMOOTHED, both as the module says.
@kernel(do_not_specialize_on_alignment=["classes"])  # a thread for each lane: no wider loads
def cross_entropy_kernel(
    x_ptr, target_ptr, weight_ptr, weight_sum_ptr, g_ptr, divisor_ptr, loss_ptr, dx_ptr,
    rows, classes, inner, x_outer, ignore_index, kept: tl.float64, spread: tl.float64, on_target: tl.float64,
    SMOOTHED: tl.constexpr, EACH: tl.constexpr, MEAN: tl.constexpr, IN_ADVANCE: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    if IN_ADVANCE:  # dx holds the gradient for a g of 1
        if r.is_one(g_ptr):
            return
    number = r.own_rows(SHAPE)
    row = (number < rows, classes, inner)
    target, counts, readable = load_targets(target_ptr, number, rows, classes, ignore_index)
    x = x_ptr + number // inner * x_outer + number % inner
    m, total = r.exponentials(x, row, r.zeros(x_ptr, SHAPE), SHAPE)
    w = load_class_weights(weight_ptr, target, readable, m.dtype)
    kept, spread = tl.full(m.shape, kept, m.dtype), tl.full(m.shape, spread, m.dtype)
    if loss_ptr is not None:
        log_sum = n.log(total)
        shifted = n.widen(tl.load(x + target * inner, mask=readable, other=float("nan"))) - m
        loss = w * n.negative(shifted - log_sum)
        if SMOOTHED:
            smooth = r.sum_rows(smooth_term, (x, m, log_sum, weight_ptr, row), classes, r.zeros(x_ptr, SHAPE), SHAPE)
            loss = tl.fma(kept, loss, spread * smooth)
        tl.store(
            loss_ptr + number, n.narrow(tl.where(counts, loss, 0.0), loss_ptr.dtype.element_ty), mask=number < rows
        )
    if dx_ptr is not None:
        sum_q, q_target, q_other = w, w, tl.full(m.shape, 0.0, m.dtype)
        if SMOOTHED:
            if weight_ptr is None:
                q_target, q_other = tl.full(m.shape, on_target, m.dtype), spread
            else:
                sum_q = tl.fma(kept, w, spread * tl.load(weight_sum_ptr))
                q_target = tl.fma(kept, w, spread * w)
        inverse = n.div(1.0, total)
        scale = row_scale(g_ptr, divisor_ptr, number, rows, m, EACH, MEAN)
        dx = dx_ptr + r.row_start(number, classes, inner)
        for step in range(r.steps_of(classes, SHAPE)):
            column = r.columns_of(step, SHAPE)
            p = n.exp_nonpositive(r.elements(x, column, row, -n.INFINITY) - m) * inverse
            q = q_other
            if SMOOTHED:
                if weight_ptr is not None:
                    q = spread * weights_of(weight_ptr, column, row)
            q = tl.where(column == target, q_target, q)
            gradient = tl.fma(p, sum_q, n.negative(q)) * scale
            r.put(dx, tl.where(counts, gradient, 0.0), column, row)


# ---- class probabilities --------------------------------------------------------------------------------------------


@device_function
def distribution(t, weight_ptr, kept, spread, column, row, SMOOTHED: tl.constexpr):
    """q, of the probabilities that begin at t."""
    q = r.elements(t, column, row, 0.0)
    if SMOOTHED:
        q = tl.fma(q, kept, spread)
    if weight_ptr is not None:
        q = weights_of(weight_ptr, column, row) * q
    return q


@device_function
def distribution_term(given, column):
    t, weight_ptr, kept, spread, row, SMOOTHED = given
    exists, classes, inner = row
    return tl.where(column < classes, distribution(t, weight_ptr, kept, spread, column, row, SMOOTHED), 0.0)


@device_function
def loss_term(given, column):
    x, m, log_sum, target = given
    t, weight_ptr, kept, spread, row, SMOOTHED = target
    exists, classes, inner = row
    q = distribution(t, weight_ptr, kept, spread, column, row, SMOOTHED)
    return tl.where(column < classes, q * minus_log(x, m, log_sum, column, row), 0.0)


# loss = sum of q (-log p); dx = (p (sum of q) - q) s, dt = (-log p) w (1 - eps) s, s the gradient of the row's loss.
@kernel(do_not_specialize_on_alignment=["classes"])  # a thread for each lane: no wider loads
def cross_entropy_of_probabilities_kernel(
    x_ptr, t_ptr, weight_ptr, g_ptr, loss_ptr, dx_ptr, dt_ptr,
    rows, classes, inner, x_outer, kept: tl.float64, spread: tl.float64,
    SMOOTHED: tl.constexpr, EACH: tl.constexpr, MEAN: tl.constexpr, IN_ADVANCE: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    if IN_ADVANCE:  # dx holds the gradient for a g of 1
        if r.is_one(g_ptr):
            return
    number = r.own_rows(SHAPE)
    row = (number < rows, classes, inner)
    zero = r.zeros(x_ptr, SHAPE)
    start = r.row_start(number, classes, inner)
    x, t = x_ptr + number // inner * x_outer + number % inner, t_ptr + start
    m, total = r.exponentials(x, row, zero, SHAPE)
    inverse, log_sum = n.div(1.0, total), n.log(total)
    kept, spread = tl.full(m.shape, kept, m.dtype), tl.full(m.shape, spread, m.dtype)
    target = (t, weight_ptr, kept, spread, row, SMOOTHED)
    if loss_ptr is not None:
        loss = r.sum_rows(loss_term, (x, m, log_sum, target), classes, zero, SHAPE)
        tl.store(loss_ptr + number, n.narrow(loss, loss_ptr.dtype.element_ty), mask=number < rows)
    scale = row_scale(g_ptr, None, number, rows, m, EACH, MEAN)
    if dx_ptr is not None:
        sum_q = r.sum_rows(distribution_term, target, classes, zero, SHAPE)
        for step in range(r.steps_of(classes, SHAPE)):
            column = r.columns_of(step, SHAPE)
            p = n.exp_nonpositive(r.elements(x, column, row, -n.INFINITY) - m) * inverse
            q = distribution(t, weight_ptr, kept, spread, column, row, SMOOTHED)
            r.put(dx_ptr + start, tl.fma(p, sum_q, n.negative(q)) * scale, column, row)
    if dt_ptr is not None:  # -log p, times the class's weight, times 1 - eps
        for step in range(r.steps_of(classes, SHAPE)):
            column = r.columns_of(step, SHAPE)
            slope = minus_log(x, m, log_sum, column, row)
            if weight_ptr is not None:
                slope = slope * weights_of(weight_ptr, column, row)
            if SMOOTHED:
                slope = slope * kept
            r.put(dt_ptr + start, slope * scale, column, row)


# ---- launchers ------------------------------------------------------------------------------------------------------


def evaluate(o, reduction, ignore_index, eps, g, losses, dx, dt, divisor, in_advance=False):
    """Write what is not None of the rows' losses and the gradients; ``in_advance``, unless g is 1."""
    shape, programs, num_warps = r.row_shape(o.rows, o.classes, o.inner)
    smoothed = eps > 0
    spread = eps / o.classes if smoothed else 0.0
    sizes = o.rows, o.classes, o.inner, o.x_outer
    constants = {
        "SMOOTHED": smoothed, "EACH": reduction == 0, "MEAN": reduction == 1, "IN_ADVANCE": in_advance,
        "SHAPE": shape, "num_warps": num_warps,
    }  # fmt: skip
    kept = 1.0 - eps if smoothed else 1.0
    if o.of_probabilities:
        arguments = o.x, o.target, o.weight, g, losses, dx, dt, *sizes, kept, spread
        return launch(cross_entropy_of_probabilities_kernel, (programs,), *arguments, **constants)
    weight_sum = sum_rows(o.weight[None], r.computed_in(o.x.dtype)) if smoothed and o.weight is not None else None
    arrays = o.x, o.target, o.weight, weight_sum, g, divisor, losses, dx
    numbers = *sizes, ignore_index, kept, spread, kept + spread
    return launch(cross_entropy_kernel, (programs,), *arrays, *numbers, **constants)


def cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, with_gradient):
    o = class_operands("cross_entropy", input, target, weight, ignore_index)
    losses = input.new_empty(o.rows, dtype=input.dtype if reduction == 0 else r.computed_in(input.dtype))
    dx = o.like_x(input) if with_gradient else None
    divisor = o.divisor(reduction, ignore_index)
    evaluate(o, reduction, ignore_index, label_smoothing, None, losses, dx, None, divisor)
    return reduced(losses, reduction, loss_sizes(input, reduction), divisor, o.rows, input.dtype), dx


def cross_entropy_inference(input, target, weight, reduction, ignore_index, label_smoothing):
    return cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, False)[0]


def cross_entropy_backward(grad, input, target, weight, reduction, ignore_index, label_smoothing, mask):
    o = class_operands("cross_entropy_backward", input, target, weight, ignore_index)
    dx = o.like_x(input) if mask[0] else None
    in_rows = torch.empty_like(o.target) if mask[1] and o.of_probabilities else None
    divisor = o.divisor(reduction, ignore_index)
    if dx is not None or in_rows is not None:
        evaluate(o, reduction, ignore_index, label_smoothing, grad.contiguous(), None, dx, in_rows, divisor)
    dt = in_rows if in_rows is None or not o.classes_last else in_rows.movedim(-1, 1)
    return dx, dt


def cross_entropy_backward_into(grad, dinput, input, target, weight, reduction, ignore_index, label_smoothing):
    """Over what cross_entropy_forward left in dinput."""
    o = class_operands("cross_entropy_backward", input, target, weight, ignore_index)
    in_order = dinput.movedim(1, -1) if o.classes_last else dinput
    if not in_order.is_contiguous():  # the saved input came back with other strides
        options = reduction, ignore_index, label_smoothing, (True, False)
        dinput.copy_(cross_entropy_backward(grad, input, target, weight, *options)[0])
        return
    divisor = o.divisor(reduction, ignore_index)
    evaluate(o, reduction, ignore_index, label_smoothing, grad, None, dinput, None, divisor, in_advance=True)
