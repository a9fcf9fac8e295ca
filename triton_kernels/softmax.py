"""softmax and log_softmax, both directions."""

import torch
import triton.language as tl

from . import numerics as n
from . import rows as r
from .launch import device_function, kernel, launch


@kernel(do_not_specialize_on_alignment=["columns"])  # a thread for each lane: no wider loads
def softmax_forward_kernel(
    x_ptr, y_ptr, rows, columns, inner, x_outer,
    LOGARITHM: tl.constexpr, HIDES: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """y = e / (sum of e) with e = exp(x - max), or (x - max) - log(sum of e). HIDES: 0 in rows of -inf alone."""
    number = r.own_rows(SHAPE)
    row = (number < rows, columns, inner)
    x = x_ptr + number // inner * x_outer + number % inner
    y = y_ptr + r.row_start(number, columns, inner)
    m, total = r.exponentials(x, row, r.zeros(x_ptr, SHAPE), SHAPE, HIDES)
    scale = n.log(total) if LOGARITHM else n.div(1.0, total)
    for step in range(r.steps_of(columns, SHAPE)):
        column = r.columns_of(step, SHAPE)
        shifted = r.elements(x, column, row, -n.INFINITY) - m
        value = shifted - scale if LOGARITHM else n.exp_nonpositive(shifted) * scale
        if HIDES:
            value = tl.where(total == 0.0, 0.0, value)
        r.put(y, value, column, row)


@device_function
def gradient_term(given, column):
    g, y, row, LOGARITHM = given
    g = r.elements(g, column, row, 0.0)
    if LOGARITHM:
        return g
    else:
        return r.elements(y, column, row, 0.0) * g


@kernel(do_not_specialize_on_alignment=["columns"])  # a thread for each lane: no wider loads
def softmax_backward_kernel(g_ptr, y_ptr, dx_ptr, rows, columns, inner, LOGARITHM: tl.constexpr, SHAPE: tl.constexpr):
    """dx = y (g - sum of y g), or g - e^y (sum of g)."""
    number = r.own_rows(SHAPE)
    row = (number < rows, columns, inner)
    start = r.row_start(number, columns, inner)
    g, y, dx = g_ptr + start, y_ptr + start, dx_ptr + start
    total = r.sum_rows(gradient_term, (g, y, row, LOGARITHM), columns, r.zeros(y_ptr, SHAPE), SHAPE)
    for step in range(r.steps_of(columns, SHAPE)):
        column = r.columns_of(step, SHAPE)
        of_loss, value = r.elements(g, column, row, 0.0), r.elements(y, column, row, 0.0)
        if LOGARITHM:
            gradient = tl.fma(n.negative(n.exp_nonpositive(value)), total, of_loss)
        else:
            gradient = value * (of_loss - total)
        r.put(dx, gradient, column, row)


# ---- launchers ------------------------------------------------------------------------------------------------------


def row_sizes(t, dim):
    """(outer, columns, inner) of the rows along dim; a tensor without dimensions is one row of one element."""
    sizes = list(t.shape) or [1]
    dim %= len(sizes)
    outer, inner = torch.Size(sizes[:dim]).numel(), torch.Size(sizes[dim + 1 :]).numel()
    return outer, sizes[dim], inner


def launch_forward(x, y, rows, columns, inner, x_outer, logarithm=False, hides=False):
    shape, programs, num_warps = r.row_shape(rows, columns, inner)
    constants = {"LOGARITHM": logarithm, "HIDES": hides, "SHAPE": shape, "num_warps": num_warps}
    launch(softmax_forward_kernel, (programs,), x, y, rows, columns, inner, x_outer, **constants)


def launch_backward(g, y, dx, rows, columns, inner, logarithm=False):
    shape, programs, num_warps = r.row_shape(rows, columns, inner)
    constants = {"LOGARITHM": logarithm, "SHAPE": shape, "num_warps": num_warps}
    launch(softmax_backward_kernel, (programs,), g, y, dx, rows, columns, inner, **constants)


def softmax_forward(input, dim, logarithm):
    outer, columns, inner = row_sizes(input, dim)
    y = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if not y.numel():
        return y
    # Rows may lie apart, as those of a slice do.
    as_it_is = input.dim() == 2 and inner == 1 and outer == input.shape[0] and input.stride(1) == 1
    x, x_outer = (input, input.stride(0)) if as_it_is else (input.contiguous(), columns * inner)
    launch_forward(x, y, outer * inner, columns, inner, x_outer, logarithm)
    return y


def softmax_backward(grad, output, dim, logarithm):
    outer, columns, inner = row_sizes(output, dim)
    dx = torch.empty(output.shape, dtype=output.dtype, device=output.device)
    if dx.numel():
        launch_backward(grad.contiguous(), output.contiguous(), dx, outer * inner, columns, inner, logarithm)
    return dx


# A program reads all of a row before it writes, and nobody else reads it, so that scores may become their weights.


def scores_to_weights(scores, hides):
    """softmax over the last dimension, in place."""
    columns = scores.shape[-1]
    launch_forward(scores, scores, scores.numel() // columns, columns, 1, columns, hides=hides)
    return scores


def weights_to_scores(grad, weights):
    """The scores' gradient from the weights', in place of it."""
    columns = weights.shape[-1]
    launch_backward(grad, weights, grad, weights.numel() // columns, columns, 1)
    return grad
