"""How a kernel is written and launched: what every kernel of the package has in common.

A kernel is decorated with :func:`kernel`, a function that kernels call with :func:`device_function`, and nothing is
launched but through :func:`launch`, so that no launch can forget an option the contract depends on.
"""

import contextlib
import ctypes
import os

import torch
import triton

# Triton decides when a kernel is decorated, so the environment counts at import.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# A product and a sum that meet would become one fma: in float32 the contract names every operation.
OPTIONS = {"enable_fp_fusion": False}

kernel = triton.jit


def device_function(function):
    """A function that kernels call. The interpreter would prepare each call of a triton.jit function anew, which takes
    milliseconds, and calls a plain one as it is."""
    return function if INTERPRETED else triton.jit(function)


def power_of_two(n):
    """The least power of two that is not below n, nor below 1."""
    return 1 << max(n - 1, 0).bit_length()


def block_size(n, compiled):
    """Elements for one program: ``compiled`` of them, or most of ``n`` where every program costs a pass of Python."""
    return min(power_of_two(n), 1 << 16) if INTERPRETED else compiled


def blocks(n, size):
    """Programs that n elements take."""
    return -(-n // size)


def device_of(tensor):
    """Makes a tensor's device the current one, whose stream a launch takes."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def launch(kernel, grid, *arguments, num_warps=4, num_stages=2, reached=(), **constants):
    """Run a kernel over a grid (a tuple); no program means no launch. The first argument is a tensor.

    ``reached`` are tensors that the kernel finds by their addresses.
    """
    if 0 not in grid:
        with device_of(arguments[0]):
            run(kernel, grid, arguments, constants, dict(OPTIONS, num_warps=num_warps, num_stages=num_stages), reached)


def run(kernel, grid, arguments, constants, options, reached):
    """The launch itself: what a test replaces by a machine of its own."""
    kernel[grid](*arguments, **constants, **options)


if INTERPRETED:
    from . import interpreter

    interpreter.prepare()
    run = interpreter.run  # noqa: F811


def capability(device):
    """(major, minor) of a GPU; the interpreter knows what the newest do."""
    return (9, 0) if INTERPRETED else torch.cuda.get_device_capability(device)


def multiprocessors(device):
    return 4 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


def capture_number(device):
    """Which CUDA graph records the current stream of a device, as the driver counts them from 1; 0 where none does."""
    if device.type != "cuda":
        return 0
    with torch.cuda.device(device):
        if not torch.cuda.is_current_stream_capturing():
            return 0
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    status, number = ctypes.c_int(), ctypes.c_uint64()
    of_stream = ctypes.CDLL(DRIVER).cuStreamGetCaptureInfo_v2
    error = of_stream(stream, ctypes.byref(status), ctypes.byref(number), None, None, None)
    if error:
        raise RuntimeError(f"capture_number: expected the number of a capture, got the driver's error {error}")
    return number.value + 1


def reaches(device):
    """Whether kernels find memory of this device by its address: an interpreted one works on copies."""
    return not INTERPRETED or device.type == "cpu"


def can_run_on(device):
    """Whether kernels run on tensors of this device."""
    return device.type == "cuda" or INTERPRETED
