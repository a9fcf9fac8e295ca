"""Random numbers of dropout: Philox4x32-10, and the mask made of its words."""

import numpy as np

from .arithmetic import float32, ieee

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
WORD = np.uint64(0xFFFFFFFF)
BITS = np.uint64(32)


def philox(counter, key):
    """Four words of 32 bits for a counter of four words and a key of two, all of them uint64 arrays."""
    c, k = [np.asarray(word, np.uint64) for word in counter], [np.uint64(word) for word in key]
    for _ in range(ROUNDS):
        first, second = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]
        c = [second >> BITS ^ c[1] ^ k[0], second & WORD, first >> BITS ^ c[3] ^ k[1], first & WORD]
        k = [(word + step) & WORD for word, step in zip(k, KEY_STEPS, strict=True)]
    return c


def words(n, key):
    """The words of elements 0 to n - 1 in row-major order: element i takes word i mod 4 of counter i div 4.

    The counter's two low words hold i div 4, the others are 0; the key's words are an int64's, the low one first.
    """
    counter, key = np.arange((n + 3) // 4, dtype=np.uint64), np.uint64(key % 2**64)
    zero = np.zeros_like(counter)
    block = philox([counter & WORD, counter >> BITS, zero, zero], [key & WORD, key >> BITS])
    return np.stack(block, 1).reshape(-1)[:n].astype(np.uint32)


def mask(shape, p, key):
    """What x is multiplied by: 1 / (1 - p) where the element is kept, +0 where it is dropped.

    An element is kept where its word is at least p * 2^32, rounded to the nearest integer, ties to even. The factor is
    computed in double and rounded once to float.
    """
    threshold = round(p * 2**32)
    kept = words(int(np.prod(shape)), key).astype(np.int64) >= threshold
    scale = float32(0 if p == 1 else 1 / (1 - p))
    return np.where(kept, scale, np.float32(0)).reshape(shape)


@ieee
def dropout(x, p, key):
    """One multiplication by the mask, so NaN stays NaN and a dropped infinity becomes NaN. The gradient: g for x."""
    x = np.asarray(x, np.float32)
    return x * mask(x.shape, p, key)
