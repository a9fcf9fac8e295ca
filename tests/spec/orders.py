"""The orders in which sums are taken."""

import numpy as np

from .arithmetic import fma, ieee

CHUNK = 256
LANES = 64
SEGMENT = 4096


@ieee
def product(A, B):
    """A (..., M, K) times B (..., K, N).

    K is cut into chunks of 256. A chunk is one fma chain from +0 with K ascending; chunks are added left to right, the
    first one standing alone. K = 0 gives +0. Nothing but K decides the order, so neither batch nor tiling can matter.
    """
    A, B = np.asarray(A, np.float32), np.asarray(B, np.float32)
    shape = (*np.broadcast_shapes(A.shape[:-2], B.shape[:-2]), A.shape[-2], B.shape[-1])
    total = np.zeros(shape, np.float32)
    for begin in range(0, A.shape[-1], CHUNK):
        chunk = np.zeros(shape, np.float32)
        for k in range(begin, min(begin + CHUNK, A.shape[-1])):
            chunk = fma(A[..., :, k, None], B[..., None, k, :], chunk)
        total = chunk if begin == 0 else total + chunk
    return total


@ieee
def sum_columns(x):
    """The sum of x over its first dimension: the rule of every sum that is not a product.

    Element i goes to lane i mod 64, ascending; lanes start at +0. Then the upper half of the lanes is added to the
    lower: 32, 16, 8, 4, 2, 1. More than 4096 elements are cut into segments of 4096, whose results are summed by the
    same rule.
    """
    x = np.asarray(x, np.float32)
    if len(x) > SEGMENT:
        return sum_columns(np.stack([sum_columns(x[i : i + SEGMENT]) for i in range(0, len(x), SEGMENT)]))
    lanes = np.zeros((LANES, *x.shape[1:]), np.float32)
    for begin in range(0, len(x), LANES):
        block = x[begin : begin + LANES]
        lanes[: len(block)] += block
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def sum_row(x):
    """The sum of x over its last dimension, by the same rule."""
    return sum_columns(np.moveaxis(np.asarray(x, np.float32), -1, 0))
