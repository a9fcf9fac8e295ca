"""Products on tensor cores where tiles can come and go as blocks (TMA): 9.0 and newer. Outside the contract.

A program for each multiprocessor stays and takes tile after tile, in an order that keeps both operands in the second
cache; while it works on one, the blocks of the next are on their way. Operands are of 16 bits, or float32 rounded to
TF32 where torch's flags ask for it; sums are float32, over all of K.
"""

import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import numerics as n
from .activation import value
from .launch import INTERPRETED, blocks, capability, device_function, kernel, launch, multiprocessors, power_of_two
from .tiles import GROUP, dot, tile_of

# (BLOCK_M, BLOCK_N, num_warps, num_stages) from the largest, and the bytes of a block along K. No card has measured
# these: the widest is for 16 bits alone, whose blocks then fill shared memory, and for epilogues that leave it the
# registers; 128 bytes are the longest swizzle.
WIDEST = (128, 256, 8, 3)
TILES = (128, 128, 8, 3), (64, 64, 4, 3)
ROW_BYTES = 128


@device_function
def load_block(t, row, column, TRANSPOSED: tl.constexpr):
    """A block of a matrix, which is stored transposed or not; zeros beyond the end."""
    if TRANSPOSED:
        return tl.trans(t.load([column, row]))
    else:
        return t.load([row, column])


# C = f(A B + bias), z = A B + bias: a, b, c and z describe the matrices in memory and their blocks.
@kernel
def tensor_core_product_kernel(
    bias_ptr, a, b, c, z, M, N, K, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    tiles = ((M + BLOCK_M - 1) // BLOCK_M) * ((N + BLOCK_N - 1) // BLOCK_N)
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        _, row, column = tile_of(number, M, N, GROUP, BLOCK_M, BLOCK_N)
        row, column = row.to(tl.int32), column.to(tl.int32)
        total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
        for k in range(0, K, BLOCK_K):
            left = load_block(a, row, k, A_TRANSPOSED)
            total = dot(left, load_block(b, k, column, B_TRANSPOSED), total, PRECISION)
        if BIAS:
            i = column + tl.arange(0, BLOCK_N)
            total += n.widen(tl.load(bias_ptr + i, mask=i < N))[None, :]
        if SAVE:
            z.store([row, column], n.narrow(total, dtype))
        c.store([row, column], n.narrow(value(total, KIND), dtype))


def is_described(t):
    """Whether a matrix, which may be stored transposed, can be read in blocks."""
    rows, unit = sorted(t.stride(), reverse=True)
    return unit == 1 and rows * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0


def takes(A, B, precision):
    """Whether the kernel takes a product of these (..., M, K) and (..., K, N), of a batch of two dimensions."""
    if (A.element_size() != 2 and precision != "tf32") or A.shape[:2].numel() != 1 or capability(A.device) < (9, 0):
        return False
    N = B.shape[-1]
    fits = min(*A.shape[-2:], N) >= 16 and N * A.element_size() % 16 == 0
    return fits and is_described(A[0, 0]) and is_described(B[0, 0])


def tile_sizes(M, N, K, dtype, saves, device):
    """(BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages), the largest that leave no multiprocessor without a tile."""
    if INTERPRETED:
        return min(power_of_two(M), 64), min(power_of_two(N), 128), 16, 4, 1
    tiles = [*([WIDEST] if dtype.itemsize == 2 and not saves else []), *TILES]
    fits = [tile for tile in tiles if blocks(M, tile[0]) * blocks(N, tile[1]) >= multiprocessors(device)]
    down, across, num_warps, num_stages = (fits or tiles[-1:])[0]
    return down, across, ROW_BYTES // dtype.itemsize, num_warps, num_stages


def described(t, down, across):
    """(the matrix as it lies in memory, in blocks; whether it is transposed there)"""
    if t.stride(1) == 1:
        return TensorDescriptor.from_tensor(t, [down, across]), False
    return TensorDescriptor.from_tensor(t.t(), [across, down]), True


def tensor_core_product(A, B, C, z, bias, kind, precision):
    """Writes C, and z where it is no None; of matrices."""
    (M, K), N = A.shape, B.shape[1]
    *sizes, num_warps, num_stages = tile_sizes(M, N, K, A.dtype, z is not None, A.device)
    down, across, depth = sizes
    (a, a_transposed), (b, b_transposed) = described(A, down, depth), described(B, depth, across)
    c, saved = (TensorDescriptor.from_tensor(C if t is None else t, [down, across]) for t in (C, z))
    tiles = blocks(M, down) * blocks(N, across)
    launch(
        tensor_core_product_kernel, (min(tiles, multiprocessors(A.device)),),
        C if bias is None else bias.contiguous(), a, b, c, saved, M, N, K,
        A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, KIND=kind, BIAS=bias is not None, SAVE=z is not None,
        PRECISION=precision, GROUP=GROUP, BLOCK_M=down, BLOCK_N=across, BLOCK_K=depth,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
