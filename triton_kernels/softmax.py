"""softmax and log_softmax, both directions."""

import torch
import triton.language as tl

from . import numerics as n
from . import rows as r
from .launch import device_function, kernel, launch


@kernel(do_not_specialize_on_alignment=["columns"])  # a thread for each lane: no wider loads
def softmax_forward_kernel(x_ptr, y_ptr, rows, columns, inner, x_outer, LOGARITHM: tl.constexpr, SHAPE: tl.constexpr):
    """y = e / (sum of e) with e = exp(x - max), or (x - max) - log(sum of e)."""
    number = r.own_rows(SHAPE)
    row = (number < rows, columns, inner)
    x = x_ptr + number // inner * x_outer + number % inner
    y = y_ptr + r.row_start(number, columns, inner)
    m, total = r.exponentials(x, row, r.zeros(x_ptr, SHAPE), SHAPE)
    scale = n.log(total) if LOGARITHM else n.div(1.0, total)
    for step in range(r.steps_of(columns, SHAPE)):
        column = r.columns_of(step, SHAPE)
        shifted = r.elements(x, column, row, -n.INFINITY) - m
        value = shifted - scale if LOGARITHM else n.exp_nonpositive(shifted) * scale
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


def softmax_forward(input, dim, logarithm):
    outer, columns, inner = row_sizes(input, dim)
    y = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if not y.numel():
        return y
    # Rows may lie apart, as those of a slice do.
    as_it_is = input.dim() == 2 and inner == 1 and outer == input.shape[0] and input.stride(1) == 1
    x, x_outer = (input, input.stride(0)) if as_it_is else (input.contiguous(), columns * inner)
    shape, programs, num_warps = r.row_shape(outer * inner, columns, inner)
    sizes = outer * inner, columns, inner, x_outer
    launch(softmax_forward_kernel, (programs,), x, y, *sizes, LOGARITHM=logarithm, SHAPE=shape, num_warps=num_warps)
    return y


def softmax_backward(grad, output, dim, logarithm):
    outer, columns, inner = row_sizes(output, dim)
    dx = torch.empty(output.shape, dtype=output.dtype, device=output.device)
    if not dx.numel():
        return dx
    g, y = grad.contiguous(), output.contiguous()
    shape, programs, num_warps = r.row_shape(outer * inner, columns, inner)
    sizes = outer * inner, columns, inner
    launch(
        softmax_backward_kernel, (programs,), g, y, dx, *sizes, LOGARITHM=logarithm, SHAPE=shape, num_warps=num_warps
    )
    return dx
