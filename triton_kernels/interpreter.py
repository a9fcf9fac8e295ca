"""What Triton's interpreter needs to compute as a device does; imported where kernels are interpreted, for tests."""

import dataclasses
import threading

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle, interpreter_builder


def fma(a, b, c):
    """a b + c of float32 rounded once; of float64, which is outside the contract, twice.

    The product is exact in float64. Rounding the sum to 53 bits and then to 24 goes wrong only where the first result
    lies in the middle between two float32, which takes 28 zeros at its end.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    if c.dtype != np.float32:
        return total
    doubtful = (total.view(np.int64) & 0xFFFFFFF) == 0
    if doubtful.any():
        total[doubtful] = sum_rounded_to_odd(product[doubtful], np.broadcast_to(c, total.shape)[doubtful])
    return total.astype(np.float32)


def sum_rounded_to_odd(a, b):
    """a + b of float64, its last bit set where anything was cut off: what is rounded after that is rounded once."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b.astype(np.float64) - part)  # a + b - total, exactly
    inexact = np.isfinite(total) & (error != 0)
    truncated = np.where((error < 0) == (total > 0), np.nextafter(total, 0), total)
    return (np.where(inexact, truncated, total).view(np.int64) | inexact).view(np.float64)


def create_fma(a, b, c):
    return TensorHandle(fma(a.data, b.data, c.data), c.dtype.scalar)


def chain_of_fma(a, b, c):
    """c + a b in one ascending chain of fma: the interpreter's own tl.dot is numpy's matmul, whose order is its own."""
    handle = c.handle
    for k in range(a.shape[1]):
        column, row = (TensorHandle(t, c.handle.dtype) for t in (a.handle.data[:, k : k + 1], b.handle.data[k : k + 1]))
        handle = create_fma(column, row, handle)
    return tl.core.tensor(handle, c.type)


_patch_lang_tensor = interpreter._patch_lang_tensor


def patch_lang_tensor(tensor, scope):
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def prepare():
    """Once, before the first launch."""
    # It would look for overflow after every operation on integers, which takes as long as the rest.
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    interpreter_builder.create_fma = create_fma  # that of older versions rounds twice
    interpreter._patch_lang_tensor = patch_lang_tensor  # ... converts arrays to numbers that numpy refuses


ONE_AT_A_TIME = threading.Lock()  # where a program is in its grid stands once, for all threads


def run(kernel, grid, arguments, constants, options, reached):
    """A launch. Subnormals count on a device, whatever the calling thread has set."""
    flushes = not np.float32(1e-40) * np.float32(1)
    with ONE_AT_A_TIME, np.errstate(all="ignore"), torch.no_grad():
        torch.set_flush_denormal(False)
        try:
            kernel[grid](*arguments, **constants, **options)
        finally:
            torch.set_flush_denormal(flushes)
