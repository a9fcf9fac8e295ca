"""Sums over dimensions of a tensor: bias gradients, the gradients of broadcast arguments, dot products."""

import torch
import triton.language as tl

from . import numerics as n
from .launch import INTERPRETED, blocks, device_function, kernel, launch, power_of_two
from .rows import SUM_LANES, SUM_SEGMENT, computed_in, fold_lanes, over_divisor
from .tensor_table import array, chunk_of, table_of

SEGMENT = n.SUM_SEGMENT.value


@device_function
def sum_segments(x_ptr, y_ptr, first, exists, count, end, x_element, y_element, PAIRS: tl.constexpr):
    """(PAIRS, 1) sums of the segments that begin at `first` of `count` elements at x_ptr, none longer than `end`.

    Where y_ptr is not None each element is multiplied by that at y_ptr.

    Element i goes to lane i mod 64, ascending; then the lanes are halved.
    """
    lane = tl.arange(0, SUM_LANES)[None, :]
    lanes = n.widen(tl.full((PAIRS, SUM_LANES), 0.0, x_ptr.dtype.element_ty))
    for step in range(0, end, SUM_LANES):
        i = first + (step + lane)
        x = n.widen(tl.load(x_ptr + i * x_element, mask=exists & (i < count), other=0.0))
        if y_ptr is not None:
            x *= n.widen(tl.load(y_ptr + i * y_element, mask=exists & (i < count), other=0.0))
        lanes += x  # no lane is ever -0: to add +0 beyond the end changes nothing
    return fold_lanes(lanes)


# s[p] = the sum of segment p mod S of row p div S, of x or of x y. For a MEAN it is divided, as over_divisor does.
@kernel
def sum_segments_kernel(
    x_ptr, y_ptr, s_ptr, divisor_ptr, pairs, segments, count, x_row, x_element, y_row, y_element, divisor,
    MEAN: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)[:, None]
    first, end = p % segments * SUM_SEGMENT, min(count, SUM_SEGMENT)
    row = p // segments
    if y_ptr is not None:
        y_ptr += row * y_row
    s = sum_segments(x_ptr + row * x_row, y_ptr, first, p < pairs, count, end, x_element, y_element, PAIRS)
    if MEAN:
        s = over_divisor(s, divisor_ptr, divisor)
    tl.store(s_ptr + p, n.narrow(s, s_ptr.dtype.element_ty), mask=p < pairs)


# s[p] = the sum of segment p of many tensors, one after the other; ROOT: its root, where it is a whole tensor's sum.
@kernel
def sum_segments_of_tensors_kernel(
    x_ptr, table_ptr, tensors, s_ptr, pairs, end,
    SQUARES: tl.constexpr, ROOT: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)[:, None]
    owner, first, count = chunk_of(table_ptr, p, pairs, tensors, 1, SUM_SEGMENT)
    x_ptr = array(table_ptr, 0, owner, tensors, x_ptr, False)
    s = sum_segments(x_ptr, x_ptr if SQUARES else None, first, p < pairs, count, end, 1, 1, PAIRS)
    tl.store(s_ptr + p, n.sqrt(s) if ROOT else s, mask=p < pairs)


def sum_rows(x, dtype=None, divisor=None, times=None):
    """The sums of x (rows, count), or of the products ``x * times``, over its last dimension, in ``dtype`` or its own.

    With a divisor they are means: a number, or a tensor of one in the type that x is computed in.
    """
    dtype = dtype or x.dtype
    rows, count = x.shape
    segments = max(blocks(count, SEGMENT), 1)
    last = segments == 1
    wide = torch.promote_types(dtype, torch.float32)
    sums = torch.empty((rows, segments), dtype=dtype if last else wide, device=x.device)
    PAIRS = pairs_at_once(sums.numel())
    on_device = isinstance(divisor, torch.Tensor)
    launch(
        sum_segments_kernel, (blocks(sums.numel(), PAIRS),),
        x, times, sums, divisor if on_device else None, sums.numel(), segments, count, *x.stride(),
        *(x if times is None else times).stride(), 0 if on_device else divisor or 0,
        MEAN=last and divisor is not None, PAIRS=PAIRS,
    )  # fmt: skip
    return sums.view(rows) if last else sum_rows(sums, dtype, divisor)


def pairs_at_once(count):
    return min(power_of_two(count), 1024 if INTERPRETED else 16)


def norms_of(tensors):
    """The root of the sum of squares of each tensor, in the type in which its elements are computed."""
    dtype, device, squares = computed_in(tensors[0].dtype), tensors[0].device, True
    while True:
        counts = [max(blocks(t.numel(), SEGMENT), 1) for t in tensors]
        last = max(counts) == 1
        sums = torch.empty(sum(counts), dtype=dtype, device=device)
        table, pairs, _ = table_of([tensors], SEGMENT)
        PAIRS, end = pairs_at_once(pairs), min(max(t.numel() for t in tensors), SEGMENT)
        launch(
            sum_segments_of_tensors_kernel, (blocks(pairs, PAIRS),), tensors[0], table, len(tensors), sums, pairs, end,
            reached=tensors, SQUARES=squares, ROOT=last, PAIRS=PAIRS,
        )  # fmt: skip
        if last:
            return sums
        tensors, squares = sums.split(counts), False


def sum_to_size(t, sizes):
    """The gradient of an argument of these sizes that was broadcast to t's."""
    sizes = tuple(sizes)
    if tuple(t.shape) == sizes:
        return t
    padded = (1,) * (t.dim() - len(sizes)) + sizes
    summed = [d for d in range(t.dim()) if padded[d] != t.shape[d]]
    kept = [d for d in range(t.dim()) if padded[d] == t.shape[d]]
    if t.numel() == 0:
        return t.new_zeros(sizes)
    x = t.permute(*kept, *summed)
    rows = torch.Size([t.shape[d] for d in kept]).numel()
    return sum_rows(x.reshape(rows, t.numel() // rows)).view(sizes)
