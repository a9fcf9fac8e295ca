"""Machines that run the launchers of csrc/cuda: the emulator, forwards and backwards, and the PTX interpreter.

All kernels of a machine read and write the arrays that were put into its memory, and no others.
"""

import collections
import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from ptx.interpreter import Launch

from .arguments import STORAGE, structures
from .memory import Memory

FOLDER = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-DPYTORCH_EXT_ISA=device"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]

runners = []  # all that compile_runner() has made

WORKSPACE = 64  # elements of a workspace are a multiple of it: it begins as aligned as device memory does

POINTER, INTEGER, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
STRUCT, LIST = [POINTER], [POINTER, INTEGER]
LAUNCHERS = {  # their parameters, but for the workspace: what a launcher that needs one takes last
    "product": STRUCT,
    "batch_offsets": STRUCT,
    "attention": STRUCT,
    "attention_gradient": STRUCT,
    "apply_function": [INTEGER, INTEGER, POINTER, POINTER],
    "linear_gradient": STRUCT,
    "activation": [INTEGER, INTEGER, POINTER, POINTER],
    "activation_gradient": [INTEGER, INTEGER, POINTER, POINTER, POINTER],
    "dropout": STRUCT,
    "sum_slices": STRUCT,
    "dot_product": STRUCT,
    "elementwise_loss": STRUCT,
    "softmax": STRUCT,
    "softmax_gradient": STRUCT,
    "cross_entropy": STRUCT,
    "nll_loss": STRUCT,
    "sgd_step": [POINTER, *LIST],
    "adam_step": [POINTER, *LIST],
    "recorded_sgd_step": [POINTER, *LIST],
    "recorded_adam_step": [POINTER, *LIST],
    "begin_graph": STRUCT,
    "end_graph": [POINTER, INTEGER, POINTER],
    "gradient_norm": [*LIST, POINTER],
    "clip_gradients": [*LIST, REAL, POINTER],
    "train_steps": [POINTER, INTEGER, INTEGER],
}


def compiler():
    return shutil.which("c++") or shutil.which("g++")


def storage_flags(dtype):
    """What runner.cpp is compiled with for tensors of `dtype`."""
    more = ["-DSTORAGE_OF_16_BITS"] * (dtype.itemsize == 2) + ["-DSTORAGE_IS_FLOAT"] * (dtype == torch.float32)
    return [f"-DSTORAGE={STORAGE[dtype]}", *more]


def compile_runner(folder, dtype, fma_flags=()):
    """runner.cpp as a shared library; with `fma_flags` the compiler may use the processor's fma."""
    library = Path(folder, "runner.so")
    command = [compiler(), *FLAGS, *storage_flags(dtype), *fma_flags, str(FOLDER / "runner.cpp"), "-o", str(library)]
    result = subprocess.run([*command, "-ldl"], capture_output=True, text=True)
    if result.returncode or result.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    runners.append(load(library))
    return runners[-1]


def load(library):
    runner = ctypes.CDLL(str(library))
    for name, parameters in LAUNCHERS.items():
        if not hasattr(runner, name):  # of 16 bits
            continue
        workspace = f"{name}_workspace"
        getattr(runner, name).argtypes = parameters + [POINTER] * hasattr(runner, workspace)
        if hasattr(runner, workspace):
            getattr(runner, workspace).argtypes = LIST if parameters[1:2] else STRUCT
            getattr(runner, workspace).restype = INTEGER
    runner.launched_kernels.restype = runner.emulator_error.restype = runner.recorded_kernel.restype = ctypes.c_char_p
    runner.recorded_argument.restype = POINTER
    runner.set_most_scores.argtypes = [INTEGER]
    return runner


def launches_of(runner):
    """{kernel: how often the emulator has run it}."""
    lines = (line.rpartition(" ") for line in runner.launched_kernels().decode().splitlines())
    return collections.Counter({name: int(count) for name, _, count in lines})


class Machine:
    """Runs the launchers on tensors of `dtype`. Arrays begin at multiples of `alignment` bytes."""

    def __init__(self, runner, dtype=torch.float32, multiprocessors=132, alignment=1):
        self.runner, self.dtype, self.memory = runner, dtype, Memory(dtype, alignment)
        self.structures, self.tolerance = structures(dtype), 0
        runner.set_multiprocessors(multiprocessors)

    def call(self, launcher, *arguments):
        """Run a launcher. Structs are passed by reference, addresses as they are, and the workspace is added."""
        arguments = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        size_of_workspace = getattr(self.runner, f"{launcher}_workspace", None)
        if size_of_workspace:
            count = size_of_workspace(*arguments[: len(size_of_workspace.argtypes)])
            real = torch.float64 if self.dtype == torch.float64 else torch.float32
            arguments.append(self.memory.empty(-(-count // WORKSPACE) * WORKSPACE, dtype=real).address)
        self.run(launcher, arguments)
        self.memory.check()

    def run(self, launcher, arguments):
        error = getattr(self.runner, launcher)(*arguments)
        if error:
            message = self.runner.emulator_error().decode()
            raise RuntimeError(f"{launcher}: CUDA error {error}: {message or 'refused by the launcher'}")


class Emulator(Machine):
    def __init__(self, runner, dtype=torch.float32, backwards=False, multiprocessors=132):
        super().__init__(runner, dtype, multiprocessors, alignment=16 if backwards else 1)
        self.backwards = backwards

    def run(self, launcher, arguments):
        self.runner.emulator_reverse(int(self.backwards))
        super().run(launcher, arguments)


class Interpreter(Machine):
    """`kernels`: what ptx.parse made of nvcc's PTX. `launches` counts the launches of each."""

    def __init__(self, runner, kernels, dtype=torch.float32, multiprocessors=132, alignment=16):
        super().__init__(runner, dtype, multiprocessors, alignment)
        self.kernels, self.launches = kernels, collections.Counter()

    def run(self, launcher, arguments):
        runner = self.runner
        runner.emulator_record(1)
        try:
            super().run(launcher, arguments)
            launches = [self.recorded(i) for i in range(runner.recorded_launches())]
        finally:
            runner.emulator_record(0)
        for name, grid, block, shared_bytes, cluster, values in launches:
            kernel = self.kernels[name]
            Launch(kernel, grid, block, shared_bytes, values, self.memory.regions, self.fma, cluster).run()
            self.launches[name] += 1

    def recorded(self, i):
        shape = (ctypes.c_int64 * 8)()
        self.runner.recorded_shape(i, shape)
        size, values = ctypes.c_int64(), []
        for j in range(self.runner.recorded_arguments(i)):
            address = self.runner.recorded_argument(i, j, ctypes.byref(size))
            values.append(ctypes.string_at(address, size.value))
        return self.runner.recorded_kernel(i).decode(), tuple(shape[:3]), tuple(shape[3:6]), shape[6], shape[7], values

    def fma(self, a, b, c):
        arrays = [np.ascontiguousarray(x) for x in (a, b, c)]
        result = np.empty_like(arrays[0])
        function = {4: self.runner.fma_floats, 8: self.runner.fma_doubles}[result.itemsize]
        function(ctypes.c_int64(result.size), *(ctypes.c_void_p(x.ctypes.data) for x in (*arrays, result)))
        return result
