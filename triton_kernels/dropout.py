"""dropout: element i is multiplied by a mask made of Philox's word i mod 4 of counter i div 4."""

import torch
import triton.language as tl

from . import numerics as n
from .launch import block_size, blocks, device_function, kernel, launch


@device_function
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four words of 32 random bits for a counter of four words and a key of two."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high2, low2 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


# y = x times the mask: `scale` where the word is at least the threshold, else +0.
@kernel(do_not_specialize=["key", "threshold"])
def dropout_kernel(x_ptr, y_ptr, count, key, threshold, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    counter, key = first // 4 + tl.arange(0, BLOCK // 4), key.to(tl.int64)
    zero = tl.full((BLOCK // 4,), 0, tl.uint32)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(low, high, zero, zero, zero + key.to(tl.uint32), zero + (key >> 32).to(tl.uint32))
    word = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK,))
    i = first + tl.arange(0, BLOCK)
    x = n.widen(tl.load(x_ptr + i, mask=i < count))
    y = x * tl.where(word.to(tl.int64) >= threshold, tl.full((BLOCK,), SCALE, x.dtype), 0.0)
    tl.store(y_ptr + i, n.narrow(y, y_ptr.dtype.element_ty), mask=i < count)


def dropout_key(generator=None):
    """64 bits of torch's default generator, which torch.manual_seed governs, unless another one is given."""
    return torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator)


def dropout_forward(input, p, key):
    """``key`` is a tensor on the CPU: nothing waits for the device."""
    threshold = round(p * 2**32)
    scale = 1 / (1 - p) if threshold < 2**32 else 0.0
    x, output = input.contiguous(), torch.empty_like(input)
    y = output if output.is_contiguous() else torch.empty_like(x)
    block = block_size(x.numel(), 1024)
    grid = (blocks(x.numel(), block),)
    launch(dropout_kernel, grid, x, y, x.numel(), int(key), threshold, SCALE=scale, BLOCK=max(block, 4))
    return output if y is output else output.copy_(y)
