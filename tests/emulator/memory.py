"""Device memory for tests: an array ends where a page begins that nobody may touch."""

import ctypes
import mmap

import numpy as np
import torch

PROT_NONE = 0


class Array:
    """Host memory that plays device memory. It begins at a multiple of `alignment` bytes."""

    def __init__(self, shape, dtype, alignment=1):
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-size // mmap.PAGESIZE)
        self.map = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        end = start + (pages + 1) * mmap.PAGESIZE
        for page in (start, end):
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = (end - size) // alignment * alignment
        self.bytes, self.beyond = (
            np.frombuffer(self.map, np.uint8, length, begin - start)
            for begin, length in ((self.address, size), (self.address + size, end - self.address - size))
        )
        self.bytes.fill(0xFF)
        self.beyond.fill(0xFF)
        self.tensor = torch.from_numpy(self.bytes).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)

    @property
    def region(self):
        return self.address, self.bytes


class Memory:
    """What a test has put on the device."""

    def __init__(self, dtype, alignment=1):
        self.dtype, self.alignment = dtype, alignment
        self.arrays = []

    def empty(self, *shape, dtype=None):
        """NaN, or -1."""
        self.arrays.append(Array(shape, dtype or self.dtype, self.alignment))
        return self.arrays[-1]

    def copy(self, tensor):
        """A contiguous copy."""
        array = self.empty(*tensor.shape, dtype=tensor.dtype)
        array.tensor.copy_(tensor.detach())
        return array

    def put(self, tensor):
        """The address of a tensor's first element, in a copy with its strides."""
        if tensor is None:
            return None
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() == 0:
            span = 0
        return self.copy(tensor.detach().as_strided((span,), (1,), tensor.storage_offset())).address

    def check(self):
        """Raise where something was written between an array's end and the page behind it."""
        for array in self.arrays:
            if array.beyond.size and (array.beyond != 0xFF).any():
                raise RuntimeError(f"something was written behind an array of {array.tensor.shape}")

    @property
    def regions(self):
        return [array.region for array in self.arrays if array.bytes.size]
