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
def load_block(t, at, row, column, TRANSPOSED: tl.constexpr, MOVES: tl.constexpr):
    """A block of a matrix, which is stored transposed or not; zeros beyond the end. In a batch it is number `at` of
    (outer, inner), where MOVES says along which of the two there is more than one matrix."""
    if MOVES is None:
        block = t.load([column, row] if TRANSPOSED else [row, column])
    else:
        outer, inner = at
        outer, inner = outer * MOVES[0], inner * MOVES[1]
        block = t.load([outer, inner, column, row] if TRANSPOSED else [outer, inner, row, column])
        block = tl.reshape(block, (block.shape[2], block.shape[3]))
    return tl.trans(block) if TRANSPOSED else block


@device_function
def store_block(t, at, row, column, block, BATCHED: tl.constexpr):
    if BATCHED:
        outer, inner = at
        t.store([outer, inner, row, column], tl.reshape(block, (1, 1, block.shape[0], block.shape[1])))
    else:
        t.store([row, column], block)


# C = f(A B + bias), z = A B + bias: a, b, c and z describe the matrices in memory and their blocks.
@kernel
def tensor_core_product_kernel(
    bias_ptr, a, b, c, z, M, N, K, batches, inner,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, A_MOVES: tl.constexpr, B_MOVES: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    batched: tl.constexpr = A_MOVES is not None
    tiles = batches * ((M + BLOCK_M - 1) // BLOCK_M) * ((N + BLOCK_N - 1) // BLOCK_N)
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        batch, row, column = tile_of(number, M, N, GROUP, BLOCK_M, BLOCK_N)
        row, column = row.to(tl.int32), column.to(tl.int32)
        at = (batch // inner).to(tl.int32), (batch % inner).to(tl.int32)
        total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
        for k in range(0, K, BLOCK_K):
            left = load_block(a, at, row, k, A_TRANSPOSED, A_MOVES)
            total = dot(left, load_block(b, at, k, column, B_TRANSPOSED, B_MOVES), total, PRECISION)
        if BIAS:
            i = column + tl.arange(0, BLOCK_N)
            total += n.widen(tl.load(bias_ptr + i, mask=i < N))[None, :]
        if SAVE:
            store_block(z, at, row, column, n.narrow(total, dtype), batched)
        store_block(c, at, row, column, n.narrow(value(total, KIND), dtype), batched)


def is_described(t):
    """Whether matrices (outer, inner, rows, columns), which may be stored transposed, can be read in blocks."""
    rows, unit = sorted(t.stride()[2:], reverse=True)
    strides = rows, *(stride for stride, size in zip(t.stride()[:2], t.shape, strict=False) if size > 1)
    return unit == 1 and not any(stride * t.element_size() % 16 for stride in strides) and t.data_ptr() % 16 == 0


def takes(A, B, precision):
    """Whether the kernel takes a product of these (outer, inner, M, K) and (outer, inner, K, N)."""
    if (A.element_size() != 2 and precision != "tf32") or not A.shape[:2].numel() or capability(A.device) < (9, 0):
        return False
    N = B.shape[-1]
    fits = min(*A.shape[-2:], N) >= 16 and N * A.element_size() % 16 == 0
    return fits and is_described(A) and is_described(B)


def tile_sizes(M, N, K, dtype, saves, device, batches=1):
    """(BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages), the largest that leave no multiprocessor without a tile."""
    if INTERPRETED:
        return min(power_of_two(M), 64), min(power_of_two(N), 128), 16, 4, 1
    tiles = [*([WIDEST] if dtype.itemsize == 2 and not saves else []), *TILES]
    fits = [t for t in tiles if batches * blocks(M, t[0]) * blocks(N, t[1]) >= multiprocessors(device)]
    down, across, num_warps, num_stages = (fits or tiles[-1:])[0]
    return down, across, ROW_BYTES // dtype.itemsize, num_warps, num_stages


def described(t, down, across):
    """(the matrices as they lie in memory, in blocks; whether they are transposed there; of more than one matrix, which
    dimensions of the batch have more than one place in memory)"""
    transposed = t.stride(3) != 1
    if transposed:
        t, down, across = t.mT, across, down
    if t.shape[:2].numel() == 1:
        return TensorDescriptor.from_tensor(t[0, 0], [down, across]), transposed, None
    moves = tuple(int(size > 1 and stride != 0) for size, stride in zip(t.shape[:2], t.stride()[:2], strict=True))
    # Where there is one place any stride will do that is a multiple of 16 bytes.
    sizes = [size if moved else 1 for size, moved in zip(t.shape[:2], moves, strict=True)]
    strides = [stride if moved else t.stride(2) for stride, moved in zip(t.stride()[:2], moves, strict=True)]
    sizes, strides = [*sizes, *t.shape[2:]], [*strides, *t.stride()[2:]]
    return TensorDescriptor(t, sizes, strides, [1, 1, down, across]), transposed, moves


def tensor_core_product(A, B, C, z, bias, kind, precision):
    """Writes C, and z where it is no None; of matrices (outer, inner, rows, columns)."""
    (outer, inner, M, K), N = A.shape, B.shape[3]
    batches = outer * inner
    *sizes, num_warps, num_stages = tile_sizes(M, N, K, A.dtype, z is not None, A.device, batches)
    down, across, depth = sizes
    (a, a_transposed, a_moves), (b, b_transposed, b_moves) = described(A, down, depth), described(B, depth, across)
    c, saved = (described(C if t is None else t, down, across)[0] for t in (C, z))
    tiles = batches * blocks(M, down) * blocks(N, across)
    launch(
        tensor_core_product_kernel, (min(tiles, multiprocessors(A.device)),),
        C if bias is None else bias.contiguous(), a, b, c, saved, M, N, K, batches, inner,
        A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, A_MOVES=a_moves, B_MOVES=b_moves,
        KIND=kind, BIAS=bias is not None, SAVE=z is not None,
        PRECISION=precision, GROUP=GROUP, BLOCK_M=down, BLOCK_N=across, BLOCK_K=depth,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
