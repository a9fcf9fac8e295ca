"""Device memory for tests: every array ends where a page begins that nobody may touch."""

import ctypes
import mmap

import numpy as np
import torch

PROT_NONE, PROT_READ_WRITE = 0, 3


class Array:
    """Host memory that plays device memory; `numpy` is a view of it."""

    def __init__(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-size // mmap.PAGESIZE)
        self.map = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        end = start + (pages + 1) * mmap.PAGESIZE
        for page in (start, end):
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = end - size
        self.numpy = np.frombuffer(self.map, dtype, size // dtype.itemsize, self.address - start).reshape(shape)

    @property
    def tensor(self):
        return torch.from_numpy(self.numpy)

    @property
    def region(self):
        return self.address, self.numpy.reshape(-1).view(np.uint8)


class Memory:
    """What a test has put on the device."""

    def __init__(self):
        self.arrays = []

    def empty(self, *shape, dtype=np.float32):
        """NaN, or -1."""
        array = Array(shape, dtype)
        array.numpy.view(np.uint8).fill(0xFF)
        self.arrays.append(array)
        return array

    def put(self, tensor):
        """The address of a tensor's first element, in a copy with its strides."""
        if tensor is None:
            return None
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() == 0:
            span = 0
        flat = tensor.detach().as_strided((span,), (1,), tensor.storage_offset()).numpy()
        array = self.empty(span, dtype=flat.dtype)
        array.numpy[:] = flat
        return array.address

    @property
    def regions(self):
        return [array.region for array in self.arrays if array.numpy.size]
