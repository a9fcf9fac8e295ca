"""The primitive operations: each is one IEEE-754 binary32 operation, rounded to nearest even, with gradual underflow.

numpy's + - * / and sqrt on float32 arrays are such operations and are used as they are, in the order that the
parentheses give; no expression relies on a wider type. Only fma is missing from numpy.

Infinities and finite results count bit by bit. NaN counts by its position alone: payload and sign are free.
"""

import numpy as np

NAN, INFINITY = np.float32(np.nan), np.float32(np.inf)
ieee = np.errstate(all="ignore")  # a decorator: overflow, underflow and NaN are results here, not warnings


def float32(x):
    """x, a number or its hexadecimal text, rounded once to float32."""
    return np.float32(float.fromhex(x) if isinstance(x, str) else x)


def as_arrays(*values):
    """The values as float32 arrays of one common shape."""
    return np.broadcast_arrays(*(np.asarray(v, np.float32) for v in values))


@ieee
def fma(a, b, c):
    """a * b + c with one rounding.

    The product of two floats is exact in double. Its sum with c is rounded to odd: truncated, with the last bit set
    where anything was cut off. 53 bits so rounded are at least 24 + 2, so the rounding to float sees what it needs.
    """
    a, b, c = (v.astype(np.float64) for v in as_arrays(a, b, c))
    product = a * b
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)  # product + c - total, exactly
    inexact = np.isfinite(total) & (error != 0)
    toward_zero = np.where((error < 0) == (total > 0), np.nextafter(total, 0), total)
    odd = (np.where(inexact, toward_zero, total).view(np.int64) | inexact).view(np.float64)
    return odd.astype(np.float32)


def maximum(a, b):
    """a where a > b, else b: where either is NaN, b; of two zeros, b."""
    a, b = as_arrays(a, b)
    return np.where(a > b, a, b)


def minimum(a, b):
    """a where a < b, else b."""
    a, b = as_arrays(a, b)
    return np.where(a < b, a, b)


def bits(x):
    """The 32 bits of each float as an int32."""
    return np.asarray(x, np.float32).view(np.int32)


def from_bits(b):
    return np.asarray(b, np.int32).view(np.float32)


def polynomial(x, coefficients):
    """Horner's rule in fma, from the highest coefficient to the constant."""
    value = np.full_like(x, float32(coefficients[0]))
    for c in coefficients[1:]:
        value = fma(value, x, float32(c))
    return value


def same(a, b):
    """Whether two float32 arrays agree under the contract: equal bits, NaN in equal positions."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != np.float32 or b.dtype != np.float32 or a.shape != b.shape:
        return False
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b)) and np.array_equal(bits(a)[~nan], bits(b)[~nan]))
