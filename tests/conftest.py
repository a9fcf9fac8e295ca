"""Fixtures of the whole suite: the paths that exist here, instruction sets, threads, a fixed seed."""

import pytest
import torch

import pytorch_ext
from pytorch_ext import native

needs_native = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
PATHS = [pytest.param("native-cpu", marks=needs_native)]


@pytest.fixture(params=PATHS)
def path(request):
    """One path of computation; the value is the device its tensors live on."""
    with pytorch_ext.backend("native"):
        yield torch.device("cpu")


def instruction_sets():
    """The instruction sets of this processor that the native library was built for, the best one last."""
    return native.library.available_capabilities() if native.library else []


@pytest.fixture
def each_cpu():
    """Runs a function on every instruction set with one and two threads, and returns the results by name."""
    if native.library is None:
        pytest.skip(native.reason)

    def run(function):
        results = {}
        before, threads = native.library.capability(), torch.get_num_threads()
        try:
            for name in instruction_sets():
                native.library.set_capability(name)
                for count in (1, 2):
                    torch.set_num_threads(count)
                    results[f"{name}, {count} threads"] = function()
        finally:
            native.library.set_capability(before)
            torch.set_num_threads(threads)
        return results

    return run


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(20240611)
