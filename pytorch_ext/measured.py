"""Which of CUDA C++ and Triton takes an op on a GPU, by what was measured there: the tables in pytorch_ext/measured/.

A table belongs to one kind of GPU. ``benchmarks/gpu_table.py`` writes it from a benchmark's results; it says what was
measured, with which versions, and for every op and dtype from how many elements of its first argument on Triton was
faster in every case measured. Without a table, below that number and for what is not in it, CUDA C++ goes first.
"""

import functools
import json
import re
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "measured"


def file_name(gpu):
    """The table of a GPU of that name, ``NVIDIA H200`` say."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def exist():
    """Whether there are tables; which of them counts is known when a device is used."""
    return any(FOLDER.glob("*.json"))


def read_table(gpu):
    """{op: {dtype: elements}} of a GPU of that name; empty where there is none, or none that can be read."""
    file = FOLDER / file_name(gpu)
    try:
        return json.loads(file.read_text())["triton_from"]
    except FileNotFoundError:
        return {}
    except (KeyError, OSError, TypeError, ValueError) as error:
        warnings.warn(f"pytorch_ext: {file} is not used ({type(error).__name__}: {error})", stacklevel=2)
        return {}


@functools.cache
def table_of(device):
    return read_table(torch.cuda.get_device_name(device))


def size_of(argument):
    """(elements, a tensor of them) of what a function gets first: a tensor, tensors, or an optimiser's group."""
    if isinstance(argument, torch.Tensor):
        return argument.numel(), argument
    tensors = argument["params"] if isinstance(argument, dict) else argument
    return sum(t.numel() for t in tensors), tensors[0] if tensors else None


def prefers_triton(op, argument):
    """Whether Triton was measured to be the faster one for this op on an argument of that size, dtype and device."""
    elements, t = size_of(argument)
    if t is None or not t.is_cuda:
        return False
    least = table_of(t.device).get(op, {}).get(str(t.dtype).removeprefix("torch."))
    return least is not None and elements >= least


class Measured:
    """The namespace of the native library, with Triton before it where that was measured to be faster."""

    def __init__(self, native, triton):
        self._native, self._triton = native, triton

    def __getattr__(self, name):
        native, triton = getattr(self._native, name), getattr(self._triton, name, None)

        def call(first, *others):
            result = None
            if triton is not None and prefers_triton(name, first):
                result = triton(first, *others)
            return native(first, *others) if result is None else result

        setattr(self, name, call)
        return call
