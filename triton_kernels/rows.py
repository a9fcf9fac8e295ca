"""Rows and sums in the contract's order: the twin of csrc/cuda/rows.cuh and reduce.cuh.

A kernel goes over its rows in tiles of SHAPE = (tile rows, columns, segments).
  segments 0    a tile row is a whole row, of at most 4096 columns
           1    the rows are longer: one segment of each after the other
           more a tile row is a segment, of one row: so many of its segments at a time
What a row has one of stands in a tensor (rows, 1), so that it meets a tile (tile rows, columns) in any of these.

Element (o, c, i) of an array (outer, columns, inner) lies at o * x_outer + c * inner + i; row o * inner + i has all c.
"""

import torch
import triton.language as tl

from . import numerics as n
from .launch import INTERPRETED, block_size, blocks, device_function, power_of_two

LANES, SEGMENT = n.SUM_LANES.value, n.SUM_SEGMENT.value


def constant(value):
    """A number for kernels. Where they are interpreted, loops count in Python's integers, which take no constexpr."""
    return value if INTERPRETED else tl.constexpr(value)


SUM_LANES, SUM_SEGMENT = constant(LANES), constant(SEGMENT)
BLOCK = constant(SEGMENT**2)  # as many elements as a row of segments has that needs no segments itself


def row_shape(rows, columns, inner=1):
    """(SHAPE, how many programs, num_warps). No card has measured these; ptxas spills no register."""
    width = min(power_of_two(columns), SEGMENT)
    segments = min(power_of_two(blocks(columns, SEGMENT)), 4)
    if columns > SEGMENT and inner == 1 and not (INTERPRETED and rows > segments):
        return (segments, width, segments), rows, 16
    if inner > 1:  # rows side by side are read side by side
        elements, warps = 8192, 8
    elif width > LANES:  # a thread for each lane, which keeps the lane's elements in its registers
        elements, warps = width, 2
    else:
        elements, warps = 2048, 4
    tile = block_size(rows, max(elements // width, 1))
    if INTERPRETED:
        tile = min(tile, (1 << 20) // width)
    return (tile, width, int(columns > SEGMENT)), blocks(rows, tile), warps


# How tl.sum and tl.max call tl.reduce: they are functions of their own, whose calls the interpreter is slow to prepare.
ADD, LARGER = tl.standard._sum_combine, tl.standard._elementwise_max


# ---- a tile's rows and columns --------------------------------------------------------------------------------------


@device_function
def zeros(x_ptr, SHAPE: tl.constexpr):
    """A tile of +0, of the type in which elements of x are computed."""
    return n.widen(tl.full((SHAPE[0], SHAPE[1]), 0, x_ptr.dtype.element_ty))


@device_function
def ceil_div(a, b):
    """Of a > 0; without the sum that a could overflow in."""
    return (a - 1) // b + 1


@device_function
def own_rows(SHAPE: tl.constexpr):
    """The numbers of the tile's rows."""
    program = tl.program_id(0).to(tl.int64)
    if SHAPE[2] > 1:
        return program + tl.full((1, 1), 0, tl.int64)
    else:
        return program * SHAPE[0] + tl.arange(0, SHAPE[0])[:, None]


@device_function
def row_start(number, columns, inner):
    """Where a row's first element lies in a contiguous array."""
    return number // inner * columns * inner + number % inner


@device_function
def steps_of(columns, SHAPE: tl.constexpr):
    """How many tiles the rows take."""
    if SHAPE[2] == 0:
        return 1
    else:
        return ceil_div(columns, SHAPE[2] * SUM_SEGMENT)


@device_function
def columns_of(step, SHAPE: tl.constexpr):
    """The columns of a tile."""
    column = tl.arange(0, SHAPE[1])[None, :].to(tl.int64)
    if SHAPE[2] == 0:
        return column
    elif SHAPE[2] == 1:
        return step * SUM_SEGMENT + column
    else:
        return (step * SHAPE[2] + tl.arange(0, SHAPE[2])[:, None].to(tl.int64)) * SUM_SEGMENT + column


@device_function
def elements(x, column, row, other):
    """Elements of the rows that begin at x; where there is none, `other`."""
    exists, columns, inner = row
    return n.widen(tl.load(x + column * inner, mask=exists & (column < columns), other=other))


@device_function
def put(y, values, column, row):
    exists, columns, inner = row
    tl.store(y + column * inner, n.narrow(values, y.dtype.element_ty), mask=exists & (column < columns))


# ---- sums: lanes from +0, ascending, then halved --------------------------------------------------------------------


@device_function
def fold_lanes(lanes):
    """(rows, 1) from (rows, lanes): lane l += lane l + 32, 16, ... 1. Each reduction is of two elements, without order.

    Lanes that are not there are +0, and adding them would change nothing: no lane is ever -0.
    """
    for k in tl.static_range(6):
        if lanes.shape[1] > (32 >> k):
            lanes = tl.reduce(tl.reshape(lanes, (lanes.shape[0], 2, 32 >> k)), 1, ADD)
    return lanes


@device_function
def sum_tile(terms):
    """The sums of a tile's rows, of up to 4096 terms, +0 where there is none: each lane's terms one after the other."""
    ROWS: tl.constexpr = terms.shape[0]
    STEPS: tl.constexpr = terms.shape[1] // SUM_LANES
    if STEPS < 2:
        return fold_lanes(terms + 0.0)
    else:
        parts = (tl.permute(tl.reshape(terms, (ROWS, STEPS, SUM_LANES)), (0, 2, 1)),)
        for k in tl.static_range(6):
            if STEPS > (1 << k):
                halves = ()
                for i in tl.static_range(1 << k):
                    pairs = tl.reshape(parts[i], (ROWS, SUM_LANES, 2, STEPS >> (k + 1)))
                    halves = halves + tl.split(tl.permute(pairs, (0, 1, 3, 2)))
                parts = halves
        lanes = tl.full((ROWS, SUM_LANES), 0.0, terms.dtype)
        for i in tl.static_range(STEPS):
            lanes = lanes + tl.reshape(parts[i], (ROWS, SUM_LANES))
        return fold_lanes(lanes)


@device_function
def sum_rows(term: tl.constexpr, given, columns, zero, SHAPE: tl.constexpr):
    """The sum over each row's columns of term(given, column): a tile, +0 where there is no column."""
    if SHAPE[2] == 0:
        return sum_tile(term(given, columns_of(0, SHAPE)))
    else:
        return sum_segments(term, given, columns, zero, SHAPE)


@device_function
def sum_segments(term: tl.constexpr, given, columns, zero, SHAPE: tl.constexpr):
    """The same for rows of many segments: sums of their results, of those of 4096 segments, and so on."""
    AT_ONCE: tl.constexpr = SHAPE[2]
    ROWS: tl.constexpr = SHAPE[0] // AT_ONCE
    GROUPS: tl.constexpr = SUM_LANES // AT_ONCE
    upper = tl.full((ROWS, SUM_LANES), 0.0, zero.dtype)
    for block in range(ceil_div(columns, BLOCK)):
        lanes = tl.full((ROWS, GROUPS, AT_ONCE), 0.0, zero.dtype)  # segment s goes to lane s mod 64
        end = tl.minimum(ceil_div(columns, AT_ONCE * SUM_SEGMENT), (block + 1) * (SUM_SEGMENT // AT_ONCE))
        for group in range(block * (SUM_SEGMENT // AT_ONCE), end):
            segments = sum_tile(term(given, columns_of(group, SHAPE)))
            own = tl.arange(0, GROUPS)[None, :, None] == group % GROUPS
            lanes = tl.where(own, lanes + tl.reshape(segments, (ROWS, 1, AT_ONCE)), lanes)
        own = tl.arange(0, SUM_LANES)[None, :] == block % SUM_LANES
        upper = tl.where(own, upper + fold_lanes(tl.reshape(lanes, (ROWS, SUM_LANES))), upper)
    return fold_lanes(upper)  # the sum of one element is that element


# ---- the first half of a softmax ------------------------------------------------------------------------------------


@device_function
def largest_of_tile(most, SHAPE: tl.constexpr):
    """A row's largest element. The bits of floats are ordered as those of integers are, the negative ones reversed; a
    maximum of integers has no order. Where an element is NaN any result will do: every use of it makes NaN."""
    if most.dtype == tl.float64:
        key = most
    else:
        key = n.bits(most)
        key = key ^ ((key >> 31) & 0x7FFFFFFF)
    key = tl.reduce(key, 1, LARGER, keep_dims=True)
    if SHAPE[2] > 1:
        key = tl.reduce(key, 0, LARGER, keep_dims=True)
    if most.dtype == tl.float64:
        return key
    else:
        return n.from_bits(key ^ ((key >> 31) & 0x7FFFFFFF))


@device_function
def largest(x, row, zero, SHAPE: tl.constexpr):
    """The largest element of each row, never -0."""
    exists, columns, inner = row
    most = zero - n.INFINITY
    for step in range(steps_of(columns, SHAPE)):
        most = n.maximum(most, elements(x, columns_of(step, SHAPE), row, -n.INFINITY))
    return largest_of_tile(most, SHAPE) + 0.0


@device_function
def exponential(given, column):
    """e^(x - m), +0 where there is no column."""
    x, m, row = given
    return n.exp_nonpositive(elements(x, column, row, -n.INFINITY) - m)


@device_function
def exponentials(x, row, zero, SHAPE: tl.constexpr, HIDES: tl.constexpr = False):
    """(m, s): the largest element of each row, and the sum of the exponentials of x - m. x is read twice.

    HIDES: a row of -inf alone has m = +0, and with it the sum +0, which no other row has.
    """
    exists, columns, inner = row
    m = largest(x, row, zero, SHAPE)
    if HIDES:
        m = tl.where(m == -n.INFINITY, 0.0, m)
    return m, sum_rows(exponential, (x, m, row), columns, zero, SHAPE)


# ---- losses ----------------------------------------------------------------------------------------------------------


@device_function
def over_divisor(x, divisor_ptr, count):
    """x divided for a mean: by the number at divisor_ptr; where that is None, by `count`."""
    if divisor_ptr is None:
        return n.div(x, tl.full(x.shape, count, x.dtype))
    else:
        return n.div(x, tl.load(divisor_ptr))


@device_function
def is_one(g_ptr):
    """Whether a loss's gradient is exactly 1."""
    return n.widen(tl.load(g_ptr)) == 1.0


def computed_in(dtype):
    """The dtype in which elements of another one are computed."""
    return dtype if dtype == torch.float64 else torch.float32
