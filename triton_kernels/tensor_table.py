"""Many tensors in one launch: a table of their addresses on the device, and the chunk of elements of each program.

The table is one array of int64: the addresses of the first tensor of every kind (parameters, gradients, ...), of the
second, and so on; the number of elements of each; then, for every program, whose elements it has and which block of
them. All kinds have tensors of the same sizes and of one dtype.
"""

import functools

import torch
import triton.language as tl

from .launch import blocks, device_function, launch

# ---- in a kernel ----------------------------------------------------------------------------------------------------


@device_function
def chunk_of(table_ptr, program, programs, tensors, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """(tensor, the program's first element of it, how many it has)"""
    chunks = table_ptr + (KINDS + 1) * tensors
    owner = tl.load(chunks + program, mask=program < programs, other=0)
    number = tl.load(chunks + programs + program, mask=program < programs, other=0)
    return owner, number * BLOCK, tl.load(table_ptr + KINDS * tensors + owner)


@device_function
def array(table_ptr, kind: tl.constexpr, owner, tensors, like_ptr, ALIGNED: tl.constexpr):
    """Where a tensor of that kind begins.

    The hint belongs to the pointer itself: that of a call's result would count for all of its results.
    """
    pointer = tl.load(table_ptr + kind * tensors + owner).to(tl.pointer_type(like_ptr.dtype.element_ty))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


# ---- on the host ----------------------------------------------------------------------------------------------------

KEPT = []  # tables that a captured graph copies to the device at every replay


def as_table(addresses, counts, block):
    """(table, programs) on the CPU."""
    per_tensor = torch.tensor([max(blocks(count, block), 1) for count in counts])  # nothing too has a sum
    owners = torch.repeat_interleave(torch.arange(len(counts)), per_tensor)
    before = (per_tensor.cumsum(0) - per_tensor)[owners]
    numbers = torch.arange(len(owners)) - before
    return torch.cat([torch.tensor([*addresses, *counts]), owners, numbers]), len(owners)


@functools.lru_cache(maxsize=64)
def on_device(addresses, counts, block, device, stream):
    """The table of tensors that mostly are where they were in the step before; a stream knows its own copies."""
    table, programs = as_table(addresses, counts, block)
    return moved(table, device), programs


def moved(table, device):
    """Without waiting for the device."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def table_of(kinds, block):
    """(table, programs, whether all arrays begin at multiples of 16 bytes) of a list of tensors for each kind."""
    first = kinds[0][0]
    addresses = tuple(t.data_ptr() for kind in kinds for t in kind)
    counts = tuple(t.numel() for t in kinds[0])
    if first.is_cuda and torch.cuda.is_current_stream_capturing():
        table, programs = as_table(addresses, counts, block)
        KEPT.append(table.pin_memory())
        table = moved(KEPT[-1], first.device)
    else:
        stream = torch.cuda.current_stream(first.device).cuda_stream if first.is_cuda else 0
        table, programs = on_device(addresses, counts, block, first.device, stream)
    return table, programs, all(address % 16 == 0 for address in addresses)


def launch_over(kernel, kinds, block, *arguments, **constants):
    """A launch over all elements of the tensors, ``block`` of them for a program."""
    table, programs, aligned = table_of(kinds, block)
    launch(
        kernel, (programs,), kinds[0][0], table, len(kinds[0]), *arguments,
        reached=[t for kind in kinds for t in kind], ALIGNED=aligned, BLOCK=block, **constants,
    )  # fmt: skip
