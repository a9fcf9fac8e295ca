"""What the machine can do at most, measured, and what a call takes of memory."""

import concurrent.futures
import ctypes
import functools
import gc
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from timing import compare

from pytorch_ext import native

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
COPIED = {"cpu": 2**24, "cuda": 2**27}  # float32 elements: beyond the caches


@functools.cache
def copy_speed(device="cpu", threads=1):
    """Bytes read and written per second by torch's copy of a large tensor."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source = torch.randn(COPIED[device], device=device)
    target = torch.empty_like(source)
    seconds = compare({"copy": lambda: target.copy_(source)}, device)["copy"].median
    torch.set_num_threads(before)
    return 2 * source.nbytes / seconds


@functools.cache
def arithmetic_speed(threads=1):
    """float32 operations per second of that many cores at once (peak.cpp), or None without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.cpp")
        flags = ["-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, source, "-o", library]).returncode:
            return None
        measure = ctypes.CDLL(str(library)).operations_per_second
        measure.restype = ctypes.c_double
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return sum(future.result() for future in [pool.submit(measure) for _ in range(threads)])


def kilobytes(name):
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def peak_memory(function):
    """Bytes that a call adds at its peak to what the process holds before it; None where the system does not tell."""
    if not os.access(CLEAR, os.W_OK):
        return None
    function()  # what is made once
    gc.collect()
    if native.library:
        native.library.free_kept_memory()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the peak is counted from here on
    before = kilobytes("VmRSS")
    function()
    return 1024 * max(0, kilobytes("VmHWM") - before)
