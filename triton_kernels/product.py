"""The product kernel of linear and matmul, and the gradients of both: C = f(A B + bias), for a batch of matrices."""

import torch
import triton.language as tl

from . import numerics as n
from .activation import value
from .launch import INTERPRETED, blocks, kernel, launch, power_of_two
from .tensor_cores import takes, tensor_core_product
from .tiles import GROUP, dot, tile_of

CHUNK = n.PRODUCT_CHUNK.value


# Sums over K in chunks of 256: an ascending chain from +0 in each, the chunks added left to right. Beyond K stand +0 in
# A and -0 in B: their product -0 changes no number. Then the bias, then the activation.
@kernel
def product_kernel(
    a_ptr, b_ptr, c_ptr, bias_ptr, z_ptr, M, N, K,
    a_batch, a_row, a_column, b_batch, b_row, b_column,
    KIND: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, first_row, first_column = tile_of(tl.program_id(0), M, N, GROUP, BLOCK_M, BLOCK_N)
    row, column, k = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    a_ptr += batch * a_batch + row[:, None] * a_row
    b_ptr += batch * b_batch + column[None, :] * b_column
    accumulator = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    in_rows, in_columns = (row < M)[:, None], (column < N)[None, :]
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, accumulator)
    for begin in range(0, K, CHUNK):
        chunk = tl.full((BLOCK_M, BLOCK_N), 0.0, accumulator)
        for at in range(begin, min(begin + CHUNK, K), BLOCK_K):
            i = (at + k).to(tl.int64)
            a = tl.load(a_ptr + i[None, :] * a_column, mask=in_rows & (i < K)[None, :], other=0.0)
            b = tl.load(b_ptr + i[:, None] * b_row, mask=(i < K)[:, None] & in_columns, other=-0.0)
            chunk = dot(a, b, chunk, PRECISION)
        total = tl.where(begin == 0, chunk, total + chunk)
    if BIAS:
        total += n.widen(tl.load(bias_ptr + column, mask=column < N))[None, :]
    place = (batch * M + row[:, None]) * N + column[None, :]
    inside = in_rows & in_columns
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


def product(A, B, bias=None, kind="none", save=False):
    """(C, z), z = A B + bias, C = f(z): z only if it is to be saved. A (batch, M, K), B (batch, K, N), any strides."""
    (batch, M, K), N = A.shape, B.shape[2]
    C = A.new_empty((batch, M, N))
    z = torch.empty_like(C) if save else None
    precision = precision_of(A)
    if takes(A, B, precision):
        tensor_core_product(A[0], B[0], C[0], z if z is None else z[0], bias, kind, precision)
        return C, z
    *sizes, num_warps, num_stages = tile_sizes(M, N, K, A.dtype)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    grid = (batch * blocks(M, sizes[0]) * blocks(N, sizes[1]),)
    constants = dict(zip(names, sizes, strict=True), KIND=kind, BIAS=bias is not None, SAVE=save, PRECISION=precision)
    pointers = A, B, C, C if bias is None else bias.contiguous(), z if save else C
    launch(
        *(product_kernel, grid, *pointers, M, N, K, *A.stride(), *B.stride()),
        **{**constants, "CHUNK": CHUNK, "GROUP": GROUP, "num_warps": num_warps, "num_stages": num_stages},
    )
    return C, z
