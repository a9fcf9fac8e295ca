"""The product kernel of linear and matmul, and the gradients of both: C = f(A B + bias), for a batch of matrices."""

import torch
import triton.language as tl

from . import numerics as n
from .activation import value
from .launch import INTERPRETED, blocks, device_function, kernel, launch, power_of_two
from .tensor_cores import takes, tensor_core_product
from .tiles import GROUP, dot, tile_of

CHUNK = n.PRODUCT_CHUNK.value


@device_function
def product_tile(
    a_ptr, b_ptr, row, column, M, N, K, a_row, a_column, b_row, b_column,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    factor=None,
):  # fmt: skip
    """A B of these rows and columns, the rows of A times a `factor` if there is one.

    Sums over K in chunks of 256: an ascending chain from +0 in each, the chunks added left to right. Beyond K stand +0
    in A and -0 in B: their product -0 changes no number.
    """
    a_ptr += row[:, None] * a_row
    b_ptr += column[None, :] * b_column
    k = tl.arange(0, BLOCK_K)
    accumulator = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, accumulator)
    for begin in range(0, K, CHUNK):
        chunk = tl.full((BLOCK_M, BLOCK_N), 0.0, accumulator)
        for at in range(begin, min(begin + CHUNK, K), BLOCK_K):
            i = (at + k).to(tl.int64)
            a = tl.load(a_ptr + i[None, :] * a_column, mask=(row < M)[:, None] & (i < K)[None, :], other=0.0)
            if factor is not None:
                a = a * factor
            b = tl.load(b_ptr + i[:, None] * b_row, mask=(i < K)[:, None] & (column < N)[None, :], other=-0.0)
            chunk = dot(a, b, chunk, PRECISION)
        total = tl.where(begin == 0, chunk, total + chunk)
    return total


@device_function
def matrix_of(ptr, number, inner, outer_stride, inner_stride):
    """Where a matrix of two dimensions of them begins, `inner` in the last one."""
    return ptr + number // inner * outer_stride + number % inner * inner_stride


# C = f(A B + bias), z = A B + bias, for batches of `inner` matrices, which lie `outer` apart.
@kernel
def product_kernel(
    a_ptr, b_ptr, c_ptr, bias_ptr, z_ptr, M, N, K, inner,
    a_outer, a_inner, a_row, a_column, b_outer, b_inner, b_row, b_column,
    KIND: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, first_row, first_column = tile_of(tl.program_id(0), M, N, GROUP, BLOCK_M, BLOCK_N)
    row, column = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, BLOCK_N)
    a_ptr = matrix_of(a_ptr, batch, inner, a_outer, a_inner)
    b_ptr = matrix_of(b_ptr, batch, inner, b_outer, b_inner)
    strides = a_row, a_column, b_row, b_column
    total = product_tile(
        a_ptr, b_ptr, row, column, M, N, K, *strides, PRECISION, CHUNK, BLOCK_M, BLOCK_N, BLOCK_K
    )  # fmt: skip
    if BIAS:
        total += n.widen(tl.load(bias_ptr + column, mask=column < N))[None, :]
    place = (batch * M + row[:, None]) * N + column[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    if SAVE:
        tl.store(z_ptr + place, n.narrow(total, z_ptr.dtype.element_ty), mask=inside)
    tl.store(c_ptr + place, n.narrow(value(total, KIND), c_ptr.dtype.element_ty), mask=inside)


def tile_sizes(M, N, K, dtype):
    """(BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages)"""
    if INTERPRETED:
        rows = min(power_of_two(M), 64)
        return rows, min(power_of_two(N), 8192 // rows), min(power_of_two(K), 16), 4, 1
    if dtype in (torch.float16, torch.bfloat16):
        return (128, 128, 64, 8, 3) if min(M, N) > 64 else (64, 64, 64, 4, 3)
    return (64, 64, 16, 4, 2) if min(M, N) > 32 else (32, 32, 32, 4, 2)


def precision_of(t):
    """How float32 is multiplied: as it is, or as TF32 where torch's flags ask for that."""
    asked = t.dtype == torch.float32 and t.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if asked else "ieee"


def as_batches(t, batch):
    """(..., rows, columns) broadcast to this batch, whose dimensions become two; a view where it has no more."""
    t = t.expand(*batch, *t.shape[-2:])
    return t.reshape(batch[:-1].numel(), *(batch[-1:] or (1,)), *t.shape[-2:])


def tiling(batch, M, N, K, t):
    """(the grid, the constants) of a kernel of products of `batch` matrices like t."""
    *sizes, num_warps, num_stages = tile_sizes(M, N, K, t.dtype)
    constants = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), sizes, strict=True), PRECISION=precision_of(t), CHUNK=CHUNK)
    grid = (batch * blocks(M, sizes[0]) * blocks(N, sizes[1]),)
    return grid, {**constants, "GROUP": GROUP, "num_warps": num_warps, "num_stages": num_stages}


def product(A, B, bias=None, kind="none", save=False):
    """(C, z), z = A B + bias, C = f(z): z only if it is to be saved. A (..., M, K), B (..., K, N), any strides; the
    batch has one dimension or two."""
    (M, K), N = A.shape[-2:], B.shape[-1]
    C = A.new_empty((*A.shape[:-1], N))
    z = torch.empty_like(C) if save else None
    a, b = (t if t.dim() == 4 else t[None] for t in (A, B))
    batch, precision = a.shape[:2], precision_of(A)
    if takes(a, b, precision):
        c, of_z = (None if t is None else t.view(*batch, M, N) for t in (C, z))
        tensor_core_product(a, b, c, of_z, bias, kind, precision)
        return C, z
    grid, constants = tiling(batch.numel(), M, N, K, A)
    pointers = a, b, C, C if bias is None else bias.contiguous(), z if save else C
    launch(
        *(product_kernel, grid, *pointers, M, N, K, batch[1], *a.stride(), *b.stride()),
        **{**constants, "KIND": kind, "BIAS": bias is not None, "SAVE": save},
    )
    return C, z
