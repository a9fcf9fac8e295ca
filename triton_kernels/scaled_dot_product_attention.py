"""scaled_dot_product_attention: softmax((q scale) k^T + mask) v and its gradients, in the CPU kernel's order.

A bounded part of the scores is there at any time: those of some heads, or of some queries of one.
"""

import math

import torch
import triton.language as tl

from . import numerics as n
from .launch import blocks, device_function, kernel, launch, multiprocessors
from .product import CHUNK, as_batches, product, product_tile, tiling
from .reduce import sum_to_size
from .rows import LANES, SEGMENT, fold_lanes, largest_of_tile
from .softmax import scores_to_weights, weights_to_scores
from .tiles import tile_of

# Scores at a time, of which 64 MB are float32; no card has measured it. Less than all queries of a head are as many as
# a chunk of the products that sum over them. With causality the keys that no query of a block sees are left out, and
# the forward pass has the CPU's blocks, since a key that is not read can be no NaN.
SCORES = 1 << 24
CAUSAL_QUERIES = 128
# Of a program of attention_kernel, of 8 warps, and how many of them a multiprocessor gets, whose registers they fill;
# ptxas spills none.
QUERIES, PROGRAMS, REGISTERS = 64, 2, 128


# ---- scores ---------------------------------------------------------------------------------------------------------


@device_function
def masked(s, mask, row, column, inside, mask_row, mask_column, first, CAUSAL: tl.constexpr):
    """The scores plus what is at `mask`, if anything is: numbers, or bytes of which 0 is -inf and the others 0. CAUSAL:
    the query of row i, which is number `first` + i, sees the keys up to that."""
    if mask is not None:
        given = tl.load(mask + row[:, None] * mask_row + column[None, :] * mask_column, mask=inside, other=0)
        s += tl.where(given == 0, -n.INFINITY, 0.0) if mask.dtype.element_ty == tl.uint8 else given
    if CAUSAL:
        s = tl.where(column[None, :] <= first + row[:, None], s, -n.INFINITY)
    return s


@kernel
def scores_kernel(
    q_ptr, k_ptr, s_ptr, mask_ptr, M, N, K, inner, first, q_outer, q_inner, q_row, q_column,
    k_outer, k_inner, k_row, k_column, mask_outer, mask_inner, mask_row, mask_column,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The masked scores of M scaled queries and N keys of every head."""
    head, first_row, first_column = tile_of(tl.program_id(0), M, N, GROUP, BLOCK_M, BLOCK_N)
    row, column = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, BLOCK_N)
    q = q_ptr + head // inner * q_outer + head % inner * q_inner
    k = k_ptr + head // inner * k_outer + head % inner * k_inner
    strides = q_row, q_column, k_column, k_row
    s = product_tile(q, k, row, column, M, N, K, *strides, PRECISION, CHUNK, BLOCK_M, BLOCK_N, BLOCK_K)
    inside = (row < M)[:, None] & (column < N)[None, :]
    mask = None
    if mask_ptr is not None:
        mask = mask_ptr + head // inner * mask_outer + head % inner * mask_inner
    s = masked(s, mask, row, column, inside, mask_row, mask_column, first, CAUSAL)
    tl.store(s_ptr + (head * M + row[:, None]) * N + column[None, :], s, mask=inside)


# ---- all of it in one kernel ----------------------------------------------------------------------------------------


# A program has a block of queries after another, and room for the scores of one: tiles of as many keys as a sum has
# lanes. They are read and written by all threads of a program, so barriers stand between the passes.
@kernel
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, s_ptr, o_ptr, heads, queries, keys, width, columns, inner,
    q_outer, q_inner, q_row, q_column, k_outer, k_inner, k_row, k_column,
    v_outer, v_inner, v_row, v_column, mask_outer, mask_inner, mask_row, mask_column,
    CAUSAL: tl.constexpr, CAUSAL_QUERIES: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The output: e = exp(s - max) of the masked scores s, e / (sum of e), and its products with the values."""
    blocks, padded = (queries + BLOCK_M - 1) // BLOCK_M, (keys + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    own, lane = tl.arange(0, BLOCK_M).to(tl.int64), tl.arange(0, BLOCK_N).to(tl.int64)
    s_ptr += tl.program_id(0).to(tl.int64) * BLOCK_M * padded
    place = s_ptr + own[:, None] * padded + lane[None, :]
    zero = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for number in range(tl.program_id(0), heads * blocks, tl.num_programs(0)):
        head, first = (number // blocks).to(tl.int64), (number % blocks * BLOCK_M).to(tl.int64)
        row, seen = first + own, keys
        if CAUSAL:
            seen = min(keys, min((first // CAUSAL_QUERIES + 1) * CAUSAL_QUERIES, queries)).to(tl.int32)
        q = q_ptr + head // inner * q_outer + head % inner * q_inner
        k = k_ptr + head // inner * k_outer + head % inner * k_inner
        v = v_ptr + head // inner * v_outer + head % inner * v_inner
        mask = None
        if mask_ptr is not None:
            mask = mask_ptr + head // inner * mask_outer + head % inner * mask_inner
        strides = q_row, q_column, k_column, k_row
        for at in range(0, seen, BLOCK_N):
            key = at + lane
            s = product_tile(
                q, k, row, key, queries, seen, width, *strides, PRECISION, CHUNK, BLOCK_M, BLOCK_N, BLOCK_K
            )
            inside = (row < queries)[:, None] & (key < seen)[None, :]
            s = masked(s, mask, row, key, inside, mask_row, mask_column, 0, CAUSAL)
            s = tl.where((key < seen)[None, :], s, -n.INFINITY)
            tl.store(place + at, s)
        tl.debug_barrier()
        most = zero - n.INFINITY
        for at in range(0, seen, BLOCK_N):
            most = n.maximum(most, tl.load(place + at))
        m = largest_of_tile(most, (BLOCK_M, BLOCK_N, 0)) + 0.0
        if mask is not None:
            m = tl.where(m == -n.INFINITY, 0.0, m)
        lanes = zero
        for at in range(0, seen, BLOCK_N):
            e = n.exp_nonpositive(tl.load(place + at) - m)
            lanes += e
            tl.store(place + at, e)
        total = fold_lanes(lanes)
        inverse = n.div(1.0, total)
        if mask is not None:  # a sum of +0: the mask hides the row
            inverse = tl.where(total == 0.0, 0.0, inverse)
        tl.debug_barrier()
        for at in range(0, columns, BLOCK_V):
            column = at + tl.arange(0, BLOCK_V).to(tl.int64)
            sizes = BLOCK_M, columns, seen, padded, 1, v_row, v_column
            output = product_tile(
                s_ptr, v, own, column, *sizes, PRECISION, CHUNK, BLOCK_M, BLOCK_V, BLOCK_K, inverse
            )  # fmt: skip
            to = o_ptr + (head * queries + row[:, None]) * columns + column[None, :]
            tl.store(to, output, mask=(row < queries)[:, None] & (column < columns)[None, :])
        tl.debug_barrier()


# ---- a call ---------------------------------------------------------------------------------------------------------


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


def in_one_launch(h):
    """The output of attention_kernel; None where room for the scores leaves multiprocessors without a program."""
    if h.scaled.dtype != torch.float32 or h.keys > SEGMENT:
        return None
    room, (outer, inner), columns = QUERIES * blocks(h.keys, LANES) * LANES, h.scaled.shape[:2], h.value.shape[-1]
    needed, available = outer * inner * blocks(h.queries, QUERIES), multiprocessors(h.scaled.device)
    programs = min(needed, PROGRAMS * available, SCORES // room)
    if programs < min(needed, available):
        return None
    output, scores = h.empty(h.queries, columns), h.scaled.new_empty(programs * room)
    strides = *h.scaled.stride(), *h.key.stride(), *h.value.stride(), *((0,) * 4 if h.mask is None else h.mask.stride())
    numbers = outer * inner, h.queries, h.keys, h.scaled.shape[-1], columns, inner
    launch(
        attention_kernel, (programs,), h.scaled, h.key, h.value, h.mask, scores, output, *numbers, *strides,
        CAUSAL=h.is_causal, CAUSAL_QUERIES=CAUSAL_QUERIES, PRECISION="ieee", CHUNK=CHUNK,
        BLOCK_M=QUERIES, BLOCK_N=LANES, BLOCK_K=16, BLOCK_V=64 if columns > 32 else 32,
        num_warps=8, num_stages=1, maxnreg=REGISTERS,
    )  # fmt: skip
    return output


def scaled_dot_product_attention_forward(query, key, value, attn_mask, is_causal, scale):
    h = Heads(query, key, value, attn_mask, is_causal, factor(query, scale))
    output = in_one_launch(h)
    if output is None:
        output = h.empty(h.queries, value.shape[-1])
        for heads, rows, keys in h.blocks(CAUSAL_QUERIES):
            output[heads][..., rows, :] = product(h.weights(heads, rows, keys), h.value[heads][..., :keys, :])[0]
    return output.view(*h.batch, *output.shape[-2:])


def scaled_dot_product_attention_backward(grad, query, key, value, attn_mask, is_causal, scale, mask):
    """(dquery, dkey, dvalue), None where the mask says so."""
    scale = factor(query, scale)
    h, g = Heads(query, key, value, attn_mask, is_causal, scale), as_batches(grad, grad.shape[:-2])
    sizes = query.shape[-2:], key.shape[-2:], value.shape[-2:]
    dq, dk, dv = (h.empty(*size) if wanted else None for size, wanted in zip(sizes, mask, strict=True))
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
    of = zip((dq, dk, dv), (query, key, value), strict=True)
    return tuple(None if d is None else sum_to_size(d.view(*h.batch, *d.shape[-2:]), t.shape) for d, t in of)


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
