"""Memory of the interpreter: arrays of bytes at their addresses; an access lies in one of them, or is a fault."""

import numpy as np

from .values import UNSIGNED


class Fault(RuntimeError):
    """What a device would not do, or do differently from run to run."""


class Memory:
    """Arrays of bytes at their addresses."""

    def __init__(self, regions):
        self.regions = regions  # (address, array of uint8)

    def find(self, addresses, width):
        """The array that the first of these elements lies in, the offsets in it, and which lie in it too."""
        for start, array in self.regions:
            if start <= addresses[0] <= start + array.size - width:
                offsets = addresses - np.uint64(start)
                return (
                    array,
                    offsets.astype(np.int64),
                    (addresses >= start) & (offsets + np.uint64(width) <= array.size),
                )
        raise Fault(f"access of {width} bytes at {int(addresses[0]):#x}, which is in no array")

    def load(self, addresses, width):
        result = np.empty(len(addresses), UNSIGNED[8 * width])
        for positions, array, offsets in self.parts(addresses, width):
            result[positions] = array[offsets[:, None] + np.arange(width)].view(result.dtype).ravel()
        return result

    def store(self, addresses, values):
        width = values.dtype.itemsize
        for positions, array, offsets in self.parts(addresses, width):
            part = np.ascontiguousarray(values[positions])
            array[offsets[:, None] + np.arange(width)] = part.view(np.uint8).reshape(-1, width)

    def parts(self, addresses, width):
        left = np.arange(len(addresses))
        while len(left):
            array, offsets, inside = self.find(addresses[left], width)
            yield left[inside], array, offsets[inside]
            left = left[~inside]
