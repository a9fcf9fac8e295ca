"""Sums over dimensions of a tensor: bias gradients, and the gradients of broadcast arguments."""

import torch
import triton.language as tl

from . import numerics as n
from .launch import INTERPRETED, blocks, kernel, launch, power_of_two
from .rows import fold_lanes, over_divisor

SEGMENT, LANES = n.SUM_SEGMENT.value, n.SUM_LANES.value


# s[p] = the sum of segment p mod S of row p div S: element i to lane i mod 64, ascending; then the lanes are halved.
# For a MEAN it is divided, as over_divisor does.
@kernel
def sum_segments_kernel(
    x_ptr, s_ptr, divisor_ptr, pairs, segments, count, x_row, x_element, divisor,
    SQUARES: tl.constexpr, MEAN: tl.constexpr, PAIRS: tl.constexpr, SEGMENT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)[:, None]
    first = p % segments * SEGMENT
    x_ptr += p // segments * x_row
    lane = tl.arange(0, LANES)[None, :]
    lanes = n.widen(tl.full((PAIRS, LANES), 0.0, x_ptr.dtype.element_ty))
    for step in range(0, min(count, SEGMENT), LANES):
        i = first + (step + lane)
        x = n.widen(tl.load(x_ptr + i * x_element, mask=(p < pairs) & (i < count), other=0.0))
        lanes += x * x if SQUARES else x  # no lane is ever -0: to add +0 beyond the end changes nothing
    s = fold_lanes(lanes)
    if MEAN:
        s = over_divisor(s, divisor_ptr, divisor)
    tl.store(s_ptr + p, n.narrow(s, s_ptr.dtype.element_ty), mask=p < pairs)


def sum_rows(x, dtype=None, divisor=None, squares=False):
    """The sums of x (rows, count), or of its squares, over its last dimension, in ``dtype`` or its own.

    With a divisor they are means: a number, or a tensor of one in the type that x is computed in.
    """
    dtype = dtype or x.dtype
    rows, count = x.shape
    segments = max(blocks(count, SEGMENT), 1)
    last = segments == 1
    wide = torch.promote_types(dtype, torch.float32)
    sums = torch.empty((rows, segments), dtype=dtype if last else wide, device=x.device)
    PAIRS = min(power_of_two(sums.numel()), 1024 if INTERPRETED else 16)
    on_device = isinstance(divisor, torch.Tensor)
    launch(
        sum_segments_kernel, (blocks(sums.numel(), PAIRS),),
        x, sums, divisor if on_device else None, sums.numel(), segments, count, *x.stride(),
        0 if on_device else divisor or 0,
        SQUARES=squares, MEAN=last and divisor is not None, PAIRS=PAIRS, SEGMENT=SEGMENT, LANES=LANES,
    )  # fmt: skip
    return sums.view(rows) if last else sum_rows(sums, dtype, divisor)


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
