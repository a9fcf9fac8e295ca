"""scaled_dot_product_attention: softmax((q scale) k^T + mask) v and its gradients, in the CPU kernel's order.

A bounded part of the scores is there at any time: those of some heads, or of some queries of one.
"""

import math

import torch
import triton.language as tl

from .attention_blocks import attention_kernel, attention_key_gradient_kernel, attention_query_gradient_kernel, masked
from .launch import blocks, kernel, launch, multiprocessors
from .product import CHUNK, as_batches, matrix_of, product, product_tile, tiling
from .reduce import sum_to_size
from .rows import LANES, SEGMENT
from .softmax import scores_to_weights, weights_to_scores
from .tiles import tile_of

# Scores at a time, of which 64 MB are float32; no card has measured it. Less than all queries of a head are as many as
# a chunk of the products that sum over them. With causality the keys that no query of a block sees are left out, and
# the forward pass has the CPU's blocks, since a key that is not read can be no NaN.
SCORES = 1 << 24
CAUSAL_QUERIES = 128
# Of a program of attention_blocks.py, of 8 warps, and how many a multiprocessor gets, whose registers they fill.
QUERIES, PROGRAMS, REGISTERS = 64, 2, 128


# ---- scores ---------------------------------------------------------------------------------------------------------


@kernel
def scores_kernel(
    q_ptr, k_ptr, s_ptr, mask_ptr, M, N, K, inner, first, q_outer, q_inner, q_row, q_column,
    k_outer, k_inner, k_row, k_column, mask_outer, mask_inner, mask_row, mask_column,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """s = (q scale) k^T + mask of M scaled queries and N keys of every head."""
    head, first_row, first_column = tile_of(tl.program_id(0), M, N, GROUP, BLOCK_M, BLOCK_N)
    row, column = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, BLOCK_N)
    q = matrix_of(q_ptr, head, inner, q_outer, q_inner)
    k = matrix_of(k_ptr, head, inner, k_outer, k_inner)
    strides = q_row, q_column, k_column, k_row
    s = product_tile(q, k, row, column, M, N, K, *strides, PRECISION, CHUNK, BLOCK_M, BLOCK_N, BLOCK_K)
    inside = (row < M)[:, None] & (column < N)[None, :]
    mask = None if mask_ptr is None else matrix_of(mask_ptr, head, inner, mask_outer, mask_inner)
    s = masked(s, mask, row, column, inside, mask_row, mask_column, first, CAUSAL)
    tl.store(s_ptr + (head * M + row[:, None]) * N + column[None, :], s, mask=inside)


# ---- operands -------------------------------------------------------------------------------------------------------


class Heads:
    """The arguments as (outer, inner, rows, columns), which no copy is made for where two dimensions are the batch."""

    def __init__(self, query, key, value, attn_mask, is_causal, scale):
        self.batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, key, value)))
        self.queries, self.keys, self.is_causal = query.shape[-2], key.shape[-2], is_causal
        self.scaled, self.key, self.value = (as_batches(t, self.batch) for t in (query * scale, key, value))
        self.mask = None
        if attn_mask is not None:
            given = attn_mask.view(torch.uint8) if attn_mask.dtype == torch.bool else attn_mask
            self.mask = as_batches(given.expand(*given.shape[:-2], self.queries, self.keys), self.batch)

    def empty(self, rows, columns):
        return self.scaled.new_empty((*self.scaled.shape[:2], rows, columns))

    def gradients(self, mask):
        """Room for the three gradients, None where the mask says so."""
        width, columns = self.scaled.shape[-1], self.value.shape[-1]
        sizes = (self.queries, width), (self.keys, width), (self.keys, columns)
        return [self.empty(*size) if wanted else None for size, wanted in zip(sizes, mask, strict=True)]

    def blocks(self, causal_queries):
        """(heads, their queries, how many keys these see), as slices, one after the other."""
        outer, inner = self.scaled.shape[:2]
        rows = self.queries if self.queries * self.keys <= SCORES else CHUNK
        rows = min(rows, causal_queries) if self.is_causal else rows
        at_once = max(SCORES // (rows * self.keys), 1)
        step = (at_once // inner, inner) if at_once >= inner else (1, at_once)
        for first in range(0, self.queries, rows):
            end = min(first + rows, self.queries)
            keys = min(end, self.keys) if self.is_causal else self.keys
            for o in range(0, outer, step[0]):
                for i in range(0, inner, step[1]):
                    yield (slice(o, o + step[0]), slice(i, i + step[1])), slice(first, end), keys

    def weights(self, heads, rows, keys):
        """softmax of the masked scores; where a mask leaves none, 0."""
        q, k = self.scaled[heads][..., rows, :], self.key[heads][..., :keys, :]
        mask = None if self.mask is None else self.mask[heads][..., rows, :keys]
        scores = q.new_empty((*q.shape[:-1], keys))
        (M, K), batch = q.shape[-2:], q.shape[:2]
        grid, constants = tiling(batch.numel(), M, keys, K, q)
        strides = *q.stride(), *k.stride(), *((0,) * 4 if mask is None else mask.stride())
        numbers = M, keys, K, batch[1], rows.start
        launch(scores_kernel, grid, q, k, scores, mask, *numbers, *strides, CAUSAL=self.is_causal, **constants)
        return scores_to_weights(scores, hides=mask is not None)


# ---- by blocks, with room for each program --------------------------------------------------------------------------


def programs_for(h, needed, room):
    """How many programs, each with so much room, for so many blocks; None where the limit on scores would leave
    multiprocessors without one, or the kernels are not for such operands."""
    if h.scaled.dtype != torch.float32 or h.keys > SEGMENT:
        return None
    available = multiprocessors(h.scaled.device)
    programs = min(needed, PROGRAMS * available, SCORES // room)
    return None if programs < min(needed, available) else programs


def of_queries(h):
    """(programs or None, the scores of one) of the kernels that take a block of queries after the other."""
    room = QUERIES * blocks(h.keys, LANES) * LANES
    return programs_for(h, h.scaled.shape[:2].numel() * blocks(h.queries, QUERIES), room), room


def launch_blocks(kernel, programs, h, widest, *arguments, further=(), **constants):
    """``widest`` is the number of columns of the widest result; ``further`` are strides after the mask's."""
    outer, inner = h.scaled.shape[:2]
    numbers = outer * inner, h.queries, h.keys, h.scaled.shape[-1], h.value.shape[-1], inner
    strides = *h.scaled.stride(), *h.key.stride(), *h.value.stride(), *((0,) * 4 if h.mask is None else h.mask.stride())
    launch(
        kernel, (programs,), h.scaled, h.key, h.value, h.mask, *arguments, *numbers, *strides, *further,
        CAUSAL=h.is_causal, SHAPE=(QUERIES, LANES, 16, 64 if widest > 32 else 32), **constants,
        num_warps=8, num_stages=1, maxnreg=REGISTERS,
    )  # fmt: skip


def output_by_blocks(h):
    """The output, in one launch; None where programs_for says so."""
    programs, room = of_queries(h)
    if programs is None:
        return None
    output, columns = h.empty(h.queries, h.value.shape[-1]), h.value.shape[-1]
    scores = h.scaled.new_empty(programs * room)
    launch_blocks(attention_kernel, programs, h, columns, scores, output, CAUSAL_QUERIES=CAUSAL_QUERIES)
    return output


def gradients_by_blocks(h, g, scale, mask):
    """The three gradients, in a launch over the queries and one over the keys, which reads what the first left of every
    query; None where programs_for says so."""
    heads, (width, columns) = h.scaled.shape[:2].numel(), (h.scaled.shape[-1], h.value.shape[-1])
    programs, room = of_queries(h)
    programs_of_keys = programs_for(h, heads * blocks(h.keys, LANES), CHUNK * LANES)
    if programs is None or programs_of_keys is None:
        return None
    dq, dk, dv = h.gradients(mask)
    rows, scores = h.scaled.new_empty(heads * h.queries * 3), h.scaled.new_empty(2 * programs * room)
    arguments, given = (g, scores, rows, dq, float(scale)), {"further": g.stride()}
    weights = dq is not None or dk is not None
    launch_blocks(attention_query_gradient_kernel, programs, h, width, *arguments, **given, WEIGHTS=weights)
    if dk is None and dv is None:
        return dq, dk, dv
    if h.is_causal:
        for d in (dk, dv):
            if d is not None:
                d.zero_()
    scores = h.scaled.new_empty(2 * programs_of_keys * CHUNK * LANES)
    widest = max(width, columns)
    launch_blocks(attention_key_gradient_kernel, programs_of_keys, h, widest, g, scores, rows, dk, dv, **given)
    return dq, dk, dv


# ---- a call ---------------------------------------------------------------------------------------------------------


def scaled_dot_product_attention_forward(query, key, value, attn_mask, is_causal, scale):
    h = Heads(query, key, value, attn_mask, is_causal, factor(query, scale))
    output = output_by_blocks(h)
    if output is None:
        output = h.empty(h.queries, value.shape[-1])
        for heads, rows, keys in h.blocks(CAUSAL_QUERIES):
            output[heads][..., rows, :] = product(h.weights(heads, rows, keys), h.value[heads][..., :keys, :])[0]
    return output.view(*h.batch, *output.shape[-2:])


def scaled_dot_product_attention_backward(grad, query, key, value, attn_mask, is_causal, scale, mask):
    """(dquery, dkey, dvalue), None where the mask says so."""
    scale = factor(query, scale)
    h, g = Heads(query, key, value, attn_mask, is_causal, scale), as_batches(grad, grad.shape[:-2])
    found = gradients_by_blocks(h, g, scale, mask)
    if found is None:
        found = gradients_of_few_scores(h, g, scale, mask)
    of = zip(found, (query, key, value), strict=True)
    return tuple(None if d is None else sum_to_size(d.view(*h.batch, *d.shape[-2:]), t.shape) for d, t in of)


def gradients_of_few_scores(h, g, scale, mask):
    """The three gradients, some scores at a time."""
    dq, dk, dv = h.gradients(mask)
    for heads, rows, keys in h.blocks(CHUNK):
        k, v, dout = h.key[heads][..., :keys, :], h.value[heads][..., :keys, :], g[heads][..., rows, :]
        weights = h.weights(heads, rows, keys)
        if dv is not None:
            accumulate(dv[heads], product(weights.mT, dout)[0], rows.start == 0)
        if dq is None and dk is None:
            continue
        dscores = weights_to_scores(product(dout, v.mT)[0], weights)
        if dk is not None:
            accumulate(dk[heads], product(dscores.mT, h.scaled[heads][..., rows, :])[0], rows.start == 0)
        if dq is not None:
            dq[heads][..., rows, :] = product(dscores, k)[0] * scale
    return dq, dk, dv


def accumulate(total, chunk, is_first):
    """The next chunk of a sum over the queries, of the first keys."""
    keys = chunk.shape[-2]
    if is_first:
        total[..., :keys, :] = chunk
        total[..., keys:, :] = 0
    else:
        total[..., :keys, :] += chunk


def factor(query, scale):
    """What the queries are multiplied by."""
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale
