"""What the kernels of products share: the dot of two blocks, and the order of the tiles."""

import triton.language as tl

from . import numerics as n
from .launch import INTERPRETED, device_function

GROUP = 8  # rows of tiles that take turns in one column of tiles, so that both operands stay in the cache


@device_function
def dot(a, b, c, PRECISION: tl.constexpr):
    """c + a b. For float32 as "ieee" tl.dot is one ascending chain of fma for each element, which
    tests/test_triton_ptx.py runs; float16, bfloat16 and "tf32" take the tensor cores."""
    return tl.dot(a, b, c, input_precision=PRECISION, out_dtype=c.dtype)


if INTERPRETED:
    from .interpreter import chain_of_fma

    def dot(a, b, c, PRECISION):  # noqa: F811
        return chain_of_fma(n.widen(a), n.widen(b), c)


@device_function
def tile_of(number, M, N, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(batch, first row, first column) of a program's tile, as int64."""
    down, across = (M + BLOCK_M - 1) // BLOCK_M, (N + BLOCK_N - 1) // BLOCK_N
    batch, tile = number // (down * across), number % (down * across)
    group, place = tile // (GROUP * across), tile % (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    first_row = (group * GROUP + place % height) * BLOCK_M
    return batch.to(tl.int64), first_row.to(tl.int64), (place // height * BLOCK_N).to(tl.int64)
