"""Fixtures of the whole suite: the paths that exist here, instruction sets, threads, a fixed seed."""

import collections
import contextlib
import functools
import os
import sys

import pytest
import torch

import pytorch_ext
from pytorch_ext import backends, native, triton_path

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # counts when Triton is imported, which pytorch_ext leaves for later

needs_native = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
IS_INTERPRETED = triton_path.is_interpreted() and triton_path.problem() is None
needs_interpreter = pytest.mark.skipif(not IS_INTERPRETED, reason="Triton does not interpret its kernels here")
has_cuda = torch.cuda.is_available() and bool(native.record.get("cuda"))
needs_cuda = pytest.mark.skipif(not has_cuda, reason="there is no CUDA device, or no CUDA in the native library")
has_triton_on_cuda = not triton_path.is_interpreted() and triton_path.problem() is None
needs_triton_on_cuda = pytest.mark.skipif(not has_triton_on_cuda, reason="there is no CUDA device for Triton's kernels")
PATHS = [
    pytest.param("native-cpu", marks=needs_native),
    pytest.param("native-cuda", marks=needs_cuda),
    pytest.param("triton-interpreted", marks=needs_interpreter),
    pytest.param("triton-cuda", marks=needs_triton_on_cuda),
]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """One path of computation; the value is the device its tensors live on."""
    if request.param == "triton-interpreted":  # each operation takes 50 us: derivatives along random directions only
        for check in ("gradcheck", "gradgradcheck"):
            fast = functools.partial(getattr(torch.autograd, check), fast_mode=True)
            monkeypatch.setattr(torch.autograd, check, fast)
    backend, kind = request.param.split("-")
    device = torch.device("cuda" if kind == "cuda" else "cpu")
    with pytorch_ext.backend(backend), tensors_on(device):
        yield device


@pytest.fixture(params=[PATHS[0], PATHS[2]])
def cpu_path(request):
    """The same for what is about tensors of the CPU."""
    backend = request.param.partition("-")[0]
    with pytorch_ext.backend(backend):
        yield backend


on_cpu_paths = pytest.mark.usefixtures("cpu_path")
INTERPRETED_SLOWLY = [PATHS[0], pytest.param(*PATHS[2].values, marks=[*PATHS[2].marks, pytest.mark.slow])]
# The same where the interpreter takes minutes.
on_cpu_paths_slowly = [on_cpu_paths, pytest.mark.parametrize("cpu_path", INTERPRETED_SLOWLY, indirect=True)]


def on_each_path(name, cases, interpreted):
    """Every case of ``name`` on every path; of those Triton's interpreter runs all but ``interpreted`` are slow."""
    return pytest.mark.parametrize(
        f"path, {name}",
        [
            pytest.param(
                *path.values,
                case,
                marks=[*path.marks, *([pytest.mark.slow] if is_slow(path, case, interpreted) else [])],
                id=f"{path.values[0]}-{case}",
            )
            for path in PATHS
            for case in cases
        ],
        indirect=["path"],
    )


def is_slow(path, case, interpreted):
    return "triton-interpreted" in path.values and case not in interpreted


def operators():
    """The registered operators of the path under test."""
    return torch.ops.pytorch_ext_triton if backends.choice.name == "triton" else torch.ops.pytorch_ext


@contextlib.contextmanager
def tensors_on(device):
    """New tensors are made there, not by ``torch.set_default_device``: that is a mode, which kernels refuse."""
    if device.type == "cuda":
        torch.set_default_tensor_type("torch.cuda.FloatTensor")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.set_default_tensor_type("torch.FloatTensor")


def instruction_sets():
    """The instruction sets of this processor that the native library was built for, the best one last."""
    return native.library.available_capabilities() if native.library else []


# Modules whose functions run interpreted too; others call the native library itself, or thousands of small products.
INTERPRETED_TOO = {
    "test_activation",
    "test_clip_grad_norm",
    "test_cross_entropy",
    "test_dropout",
    "test_elementwise_loss",
    "test_linear",
    "test_linear_cross_entropy",
    "test_low_precision",
    "test_matmul",
    "test_nll_loss",
    "test_optim",
    "test_reduce",
    "test_scaled_dot_product_attention",
    "test_softmax",
}


@pytest.fixture
def each_cpu(request):
    """Runs a function on every instruction set with one and two threads, and interpreted; the results by name."""
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
        if IS_INTERPRETED and request.module.__name__ in INTERPRETED_TOO:
            with pytorch_ext.backend("triton"):
                results["triton-interpreted"] = function()
        return results

    return run


@pytest.fixture
def launched(monkeypatch):
    """How often each of Triton's kernels was launched."""
    launch, counts = triton_path.kernels.launch, collections.Counter()
    run = launch.run

    def count(kernel, *arguments):
        counts[kernel.__name__] += 1
        return run(kernel, *arguments)

    monkeypatch.setattr(launch, "run", count)
    return counts


@pytest.fixture
def one_thread():
    """On a busy machine every parallel region may stall for milliseconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(20240611)


def kernel_launches():
    """{where: {kernel: launches}} of the CUDA kernels that this process has run without a GPU."""
    machines, compiled = (sys.modules.get(name) for name in ("emulator.machines", "ptx.compiled"))
    found = {}
    if getattr(machines, "runners", None):
        found["emulated"] = machines.launches_of(machines.runners[0])  # they share one count
    for (architecture, dtype), launches in getattr(compiled, "LAUNCHES", {}).items():
        found[f"PTX of {architecture} interpreted, {dtype}"] = launches
    return {where: dict(launches) for where, launches in found.items() if launches}


LAUNCHES_OF_WORKERS = []  # those of pytest-xdist


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kernel_launches"] = kernel_launches()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    LAUNCHES_OF_WORKERS.append(getattr(node, "workeroutput", {}).get("kernel_launches", {}))


def pytest_terminal_summary(terminalreporter):
    """How many CUDA kernels ran in the emulator and in the PTX interpreter, and how often."""
    total = {}
    for found in [kernel_launches(), *LAUNCHES_OF_WORKERS]:
        for where, launches in found.items():
            total.setdefault(where, collections.Counter()).update(launches)
    if total:
        terminalreporter.section("CUDA kernels without a GPU")
    for where, launches in total.items():
        terminalreporter.write_line(f"{where}: {len(launches)} kernels, {launches.total()} launches")
