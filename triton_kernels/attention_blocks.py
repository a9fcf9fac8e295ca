"""Attention by programs that have room for the scores of a block: float32, in the CPU kernel's order.

    s = (q scale) k^T + mask    e = exp(s - m), m a row's largest s    w = e / (sum of e)    o = w v
    dp = g v^T, g the gradient of o    d = sum over the keys of w dp    ds = w (dp - d)
    dq = (ds k) scale    dk = ds^T (q scale)    dv = w^T g

A program takes one block after the other. SHAPE = (queries, keys, step of a product, columns of a result) of its tiles:
as many keys as a sum has lanes. What it keeps between two passes is read and written by all of its threads, so
barriers stand between them.
"""

import triton.language as tl

from . import numerics as n
from .launch import device_function, kernel
from .product import CHUNK, matrix_of, product_tile
from .rows import constant, fold_lanes, largest_of_tile

PRODUCT_CHUNK = constant(CHUNK)


@device_function
def tile_product(
    a, b, row, column, M, N, K, strides, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    factor=None,
):  # fmt: skip
    return product_tile(
        a, b, row, column, M, N, K, *strides, "ieee", PRODUCT_CHUNK, BLOCK_M, BLOCK_N, BLOCK_K, factor
    )  # fmt: skip


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


@device_function
def scores_tile(q, k, mask, row, key, queries, seen, width, strides, CAUSAL: tl.constexpr, SHAPE: tl.constexpr):
    """s of these queries and keys; of keys that are not seen, -inf."""
    q_row, q_column, k_row, k_column, mask_row, mask_column = strides
    of_product = q_row, q_column, k_column, k_row
    s = tile_product(q, k, row, key, queries, seen, width, of_product, SHAPE[0], SHAPE[1], SHAPE[2])
    inside = (row < queries)[:, None] & (key < seen)[None, :]
    s = masked(s, mask, row, key, inside, mask_row, mask_column, 0, CAUSAL)
    return tl.where((key < seen)[None, :], s, -n.INFINITY)


@device_function
def exponentials(
    q, k, mask, place, row, lane, queries, seen, width, strides, CAUSAL: tl.constexpr, SHAPE: tl.constexpr
):
    """(m, 1 / (sum of e)) of these queries, both +0 where a mask hides all keys; e comes to `place`."""
    for at in range(0, seen, SHAPE[1]):
        s = scores_tile(q, k, mask, row, at + lane, queries, seen, width, strides, CAUSAL, SHAPE)
        tl.store(place + at, s)
    tl.debug_barrier()
    zero = tl.full((SHAPE[0], SHAPE[1]), 0.0, tl.float32)
    most = zero - n.INFINITY
    for at in range(0, seen, SHAPE[1]):
        most = n.maximum(most, tl.load(place + at))
    tl.debug_barrier()
    whole_rows: tl.constexpr = (SHAPE[0], SHAPE[1], 0)
    m = largest_of_tile(most, whole_rows) + 0.0
    if mask is not None:
        m = tl.where(m == -n.INFINITY, 0.0, m)
    lanes = zero
    for at in range(0, seen, SHAPE[1]):
        e = n.exp_nonpositive(tl.load(place + at) - m)
        lanes += e
        tl.store(place + at, e)
    total = fold_lanes(lanes)
    inverse = n.div(1.0, total)
    if mask is not None:
        inverse = tl.where(total == 0.0, 0.0, inverse)
    tl.debug_barrier()
    return m, inverse


@device_function
def seen_by(first, queries, keys, AT_ONCE: tl.constexpr, CAUSAL: tl.constexpr):
    """How many keys a query sees as one of AT_ONCE: with CAUSAL up to the last query of them."""
    if CAUSAL:
        return min(keys, min((first // AT_ONCE + 1) * AT_ONCE, queries)).to(tl.int32)
    else:
        return keys


# ---- o = w v --------------------------------------------------------------------------------------------------------


@kernel
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, e_ptr, o_ptr, heads, queries, keys, width, columns, inner,
    q_outer, q_inner, q_row, q_column, k_outer, k_inner, k_row, k_column,
    v_outer, v_inner, v_row, v_column, mask_outer, mask_inner, mask_row, mask_column,
    CAUSAL: tl.constexpr, CAUSAL_QUERIES: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """o = (e / (sum of e)) v: a block of queries after the other, with room for e."""
    blocks, padded = (queries + SHAPE[0] - 1) // SHAPE[0], (keys + SHAPE[1] - 1) // SHAPE[1] * SHAPE[1]
    own, lane = tl.arange(0, SHAPE[0]).to(tl.int64), tl.arange(0, SHAPE[1]).to(tl.int64)
    e_ptr += tl.program_id(0).to(tl.int64) * SHAPE[0] * padded
    place = e_ptr + own[:, None] * padded + lane[None, :]
    strides = q_row, q_column, k_row, k_column, mask_row, mask_column
    for number in range(tl.program_id(0), heads * blocks, tl.num_programs(0)):
        head, first = (number // blocks).to(tl.int64), (number % blocks * SHAPE[0]).to(tl.int64)
        row, seen = first + own, seen_by(first, queries, keys, CAUSAL_QUERIES, CAUSAL)
        q = matrix_of(q_ptr, head, inner, q_outer, q_inner)
        k = matrix_of(k_ptr, head, inner, k_outer, k_inner)
        v = matrix_of(v_ptr, head, inner, v_outer, v_inner)
        mask = None if mask_ptr is None else matrix_of(mask_ptr, head, inner, mask_outer, mask_inner)
        m, inverse = exponentials(q, k, mask, place, row, lane, queries, seen, width, strides, CAUSAL, SHAPE)
        for at in range(0, columns, SHAPE[3]):
            column = at + tl.arange(0, SHAPE[3]).to(tl.int64)
            of_product = padded, 1, v_row, v_column
            o = tile_product(
                e_ptr, v, own, column, SHAPE[0], columns, seen, of_product, SHAPE[0], SHAPE[3], SHAPE[2], inverse
            )  # fmt: skip
            to = o_ptr + (head * queries + row[:, None]) * columns + column[None, :]
            tl.store(to, o, mask=(row < queries)[:, None] & (column < columns)[None, :])
        tl.debug_barrier()


# ---- dq = (ds k) scale ----------------------------------------------------------------------------------------------


@device_function
def weight_gradients(g, v, e, dp_place, inverse, row, lane, queries, seen, columns, strides, SHAPE: tl.constexpr):
    """d of these queries; dp comes to its place."""
    for at in range(0, seen, SHAPE[1]):
        dp = tile_product(g, v, row, at + lane, queries, seen, columns, strides, SHAPE[0], SHAPE[1], SHAPE[2])
        tl.store(dp_place + at, dp)
    tl.debug_barrier()
    lanes = tl.full((SHAPE[0], SHAPE[1]), 0.0, tl.float32)
    for at in range(0, seen, SHAPE[1]):
        lanes += tl.load(e + at) * inverse * tl.load(dp_place + at)
    tl.debug_barrier()
    return fold_lanes(lanes)


# dq = (ds k) scale. For the kernel of dk and dv it leaves at rows_ptr what a query has one of: m, 1 / (sum of e), and d
# where WEIGHTS says that more than dv is wanted.
@kernel
def attention_query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, g_ptr, e_ptr, rows_ptr, dq_ptr, scale,
    heads, queries, keys, width, columns, inner,
    q_outer, q_inner, q_row, q_column, k_outer, k_inner, k_row, k_column, v_outer, v_inner, v_row, v_column,
    mask_outer, mask_inner, mask_row, mask_column, g_outer, g_inner, g_row, g_column,
    CAUSAL: tl.constexpr, WEIGHTS: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """A block of queries after the other, with room for e, which becomes ds, and for dp."""
    blocks, padded = (queries + SHAPE[0] - 1) // SHAPE[0], (keys + SHAPE[1] - 1) // SHAPE[1] * SHAPE[1]
    own, lane = tl.arange(0, SHAPE[0]).to(tl.int64), tl.arange(0, SHAPE[1]).to(tl.int64)
    e_ptr += tl.program_id(0).to(tl.int64) * 2 * SHAPE[0] * padded
    place = e_ptr + own[:, None] * padded + lane[None, :]
    dp_place = place + SHAPE[0] * padded
    strides, of_weights = (q_row, q_column, k_row, k_column, mask_row, mask_column), (g_row, g_column, v_column, v_row)
    for number in range(tl.program_id(0), heads * blocks, tl.num_programs(0)):
        head, first = (number // blocks).to(tl.int64), (number % blocks * SHAPE[0]).to(tl.int64)
        row, seen = first + own, seen_by(first, queries, keys, PRODUCT_CHUNK, CAUSAL)
        q = matrix_of(q_ptr, head, inner, q_outer, q_inner)
        k = matrix_of(k_ptr, head, inner, k_outer, k_inner)
        v = matrix_of(v_ptr, head, inner, v_outer, v_inner)
        g = matrix_of(g_ptr, head, inner, g_outer, g_inner)
        mask = None if mask_ptr is None else matrix_of(mask_ptr, head, inner, mask_outer, mask_inner)
        m, inverse = exponentials(q, k, mask, place, row, lane, queries, seen, width, strides, CAUSAL, SHAPE)
        of_row, exists = rows_ptr + (head * queries + row[:, None]) * 3, (row < queries)[:, None]
        tl.store(of_row, m, mask=exists)
        tl.store(of_row + 1, inverse, mask=exists)
        if WEIGHTS:
            d = weight_gradients(
                g, v, place, dp_place, inverse, row, lane, queries, seen, columns, of_weights, SHAPE
            )  # fmt: skip
            tl.store(of_row + 2, d, mask=exists)
            if dq_ptr is not None:
                for at in range(0, seen, SHAPE[1]):
                    w = tl.load(place + at) * inverse
                    tl.store(place + at, w * (tl.load(dp_place + at) - d))
                tl.debug_barrier()
                for at in range(0, width, SHAPE[3]):
                    column = at + tl.arange(0, SHAPE[3]).to(tl.int64)
                    of_product = padded, 1, k_row, k_column
                    dq = tile_product(
                        e_ptr, k, own, column, SHAPE[0], width, seen, of_product, SHAPE[0], SHAPE[3], SHAPE[2]
                    )  # fmt: skip
                    to = dq_ptr + (head * queries + row[:, None]) * width + column[None, :]
                    tl.store(to, dq * tl.full(dq.shape, scale, dq.dtype), mask=exists & (column < width)[None, :])
        tl.debug_barrier()


# ---- dk = ds^T (q scale), dv = w^T g --------------------------------------------------------------------------------


@device_function
def add_chunk(total_ptr, is_first, a_ptr, b, key, seen, columns, count, b_row, b_column, SHAPE: tl.constexpr):
    """The sums over the queries of a chunk, which lie at a_ptr and b, added to those over the chunks before."""
    for at in range(0, columns, SHAPE[3]):
        column = at + tl.arange(0, SHAPE[3]).to(tl.int64)
        own, of_product = tl.arange(0, SHAPE[1]), (1, SHAPE[1], b_row, b_column)
        chunk = tile_product(
            a_ptr, b, own, column, SHAPE[1], columns, count, of_product, SHAPE[1], SHAPE[3], SHAPE[2]
        )  # fmt: skip
        to = total_ptr + key[:, None] * columns + column[None, :]
        inside = (key < seen)[:, None] & (column < columns)[None, :]
        before = tl.load(to, mask=inside, other=0.0)
        tl.store(to, tl.where(is_first, chunk, before + chunk), mask=inside)


# dk = ds^T (q scale), dv = w^T g, from what attention_query_gradient_kernel left at rows_ptr. With CAUSAL they hold +0
# before: there may be keys that the first queries do not see.
@kernel
def attention_key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, g_ptr, w_ptr, rows_ptr, dk_ptr, dv_ptr,
    heads, queries, keys, width, columns, inner,
    q_outer, q_inner, q_row, q_column, k_outer, k_inner, k_row, k_column, v_outer, v_inner, v_row, v_column,
    mask_outer, mask_inner, mask_row, mask_column, g_outer, g_inner, g_row, g_column,
    CAUSAL: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """A block of keys after the other, with room for w and ds of a chunk of queries."""
    blocks = (keys + SHAPE[1] - 1) // SHAPE[1]
    own, lane = tl.arange(0, SHAPE[0]).to(tl.int64), tl.arange(0, SHAPE[1]).to(tl.int64)
    w_ptr += tl.program_id(0).to(tl.int64) * 2 * PRODUCT_CHUNK * SHAPE[1]
    ds_ptr = w_ptr + PRODUCT_CHUNK * SHAPE[1]
    strides, of_weights = (q_row, q_column, k_row, k_column, mask_row, mask_column), (g_row, g_column, v_column, v_row)
    for number in range(tl.program_id(0), heads * blocks, tl.num_programs(0)):
        head, key = (number // blocks).to(tl.int64), number % blocks * SHAPE[1] + lane
        q = matrix_of(q_ptr, head, inner, q_outer, q_inner)
        k = matrix_of(k_ptr, head, inner, k_outer, k_inner)
        v = matrix_of(v_ptr, head, inner, v_outer, v_inner)
        g = matrix_of(g_ptr, head, inner, g_outer, g_inner)
        mask = None if mask_ptr is None else matrix_of(mask_ptr, head, inner, mask_outer, mask_inner)
        start = number % blocks * SHAPE[1] // PRODUCT_CHUNK * PRODUCT_CHUNK if CAUSAL else 0
        for begin in tl.range(start, queries, PRODUCT_CHUNK, disable_licm=True):
            first, count = tl.full((), 0, tl.int64) + begin, min(PRODUCT_CHUNK, queries - begin)
            seen = seen_by(first, queries, keys, PRODUCT_CHUNK, CAUSAL)
            for at in range(0, count, SHAPE[0]):
                row, to = first + at + own, (at + own[:, None]) * SHAPE[1] + lane[None, :]
                s = scores_tile(q, k, mask, row, key, queries, seen, width, strides, CAUSAL, SHAPE)
                of_row, exists = rows_ptr + (head * queries + row[:, None]) * 3, (row < queries)[:, None]
                m, inverse = tl.load(of_row, mask=exists), tl.load(of_row + 1, mask=exists)
                tl.store(w_ptr + to, n.exp_nonpositive(s - m) * inverse)
            tl.debug_barrier()
            if dk_ptr is not None:
                for at in range(0, count, SHAPE[0]):
                    row, to = first + at + own, (at + own[:, None]) * SHAPE[1] + lane[None, :]
                    dp = tile_product(
                        g, v, row, key, queries, seen, columns, of_weights, SHAPE[0], SHAPE[1], SHAPE[2]
                    )  # fmt: skip
                    of_row, exists = rows_ptr + (head * queries + row[:, None]) * 3, (row < queries)[:, None]
                    tl.store(ds_ptr + to, tl.load(w_ptr + to) * (dp - tl.load(of_row + 2, mask=exists)))
            tl.debug_barrier()
            if dk_ptr is not None:
                dk = dk_ptr + head * keys * width
                of_chunk = q + first * q_row
                add_chunk(dk, begin == 0, ds_ptr, of_chunk, key, seen, width, count, q_row, q_column, SHAPE)
            if dv_ptr is not None:
                dv = dv_ptr + head * keys * columns
                of_chunk = g + first * g_row
                add_chunk(dv, begin == 0, w_ptr, of_chunk, key, seen, columns, count, g_row, g_column, SHAPE)
            tl.debug_barrier()
