"""PTX types and operations as those of numpy."""

import numpy as np

from .parse import BITS

UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {32: np.float32, 64: np.float64}


def numpy_type(kind):
    return {"s": SIGNED, "f": FLOAT}.get(kind[0], UNSIGNED)[BITS[kind]]


def truncated_quotient(a, b):
    if a.dtype.kind == "u":
        return a // b
    return (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b)


def maximum(a, b):  # PTX: NaN loses, +0 is above -0
    return np.where(np.isnan(a) | (a < b) | ((a == b) & np.signbit(a)), b, a)


def minimum(a, b):
    return -maximum(-a, -b)


INTEGER = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": truncated_quotient,
    "rem": lambda a, b: a - truncated_quotient(a, b) * b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
FLOATING = {
    "copysign": lambda sign, a: np.copysign(a, sign),
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": maximum,
    "min": minimum,
}


def count_of_bits(a):
    bytes_of_each = np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)
    return np.unpackbits(bytes_of_each, axis=1).sum(axis=1).astype(np.uint32)


UNARY = {"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "not": np.invert, "rcp": np.reciprocal}
UNARY |= {"popc": count_of_bits}


def coarse_reciprocal(a):
    """Of the upper halves, with an upper half alone."""
    upper = (1 / (a.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)).view(np.uint64)
    return (upper & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


# What CUDA's float64 functions begin with: the interpreter's bits are not a device's.
APPROXIMATE = {"rcp.f64": coarse_reciprocal, "ex2.f32": np.exp2}
ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
OPPOSITE = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}


def compare(name, a, b):
    if name in ("ne", "num", "nan") and a.dtype.kind == "f":
        unordered = np.isnan(a) | np.isnan(b)
        return {"ne": (a != b) & ~unordered, "num": ~unordered, "nan": unordered}[name]
    if name in OPPOSITE:  # true where unordered
        return ~compare(OPPOSITE[name], a, b)
    return ORDERED[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name)](a, b)
