"""Machines that run the launchers of csrc/cuda: the emulator, forwards and backwards, and the PTX interpreter.

All kernels of a machine read and write the arrays that were put into its memory, and no others.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
from ptx.interpreter import Launch

from .memory import Memory

FOLDER = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-DPYTORCH_EXT_ISA=device"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]

ALIGNMENT = 64  # elements of a workspace, which begins as aligned as device memory does

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
LAUNCHERS = {
    "product": [POINTER, POINTER],
    "linear_gradient": [POINTER, POINTER],
    "elementwise_loss": [POINTER, POINTER],
    "softmax": [POINTER],
    "softmax_gradient": [POINTER],
    "cross_entropy": [POINTER, POINTER],
    "sgd_step": [POINTER, POINTER, INTEGER],
    "adam_step": [POINTER, POINTER, INTEGER],
}


def compiler():
    return shutil.which("c++") or shutil.which("g++")


def compile_runner(folder, fma_flags=()):
    """runner.cpp as a shared library; with `fma_flags` the compiler may use the processor's fma."""
    library = Path(folder, "runner.so")
    command = [compiler(), *FLAGS, *fma_flags, str(FOLDER / "runner.cpp"), "-o", str(library), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or result.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return load(library)


def load(library):
    runner = ctypes.CDLL(str(library))
    for name, parameters in LAUNCHERS.items():
        getattr(runner, name).argtypes = parameters
        if hasattr(runner, f"{name}_workspace"):
            getattr(runner, f"{name}_workspace").argtypes = [ctypes.c_void_p]
            getattr(runner, f"{name}_workspace").restype = ctypes.c_int64
    runner.emulator_launches.restype = ctypes.c_int64
    runner.emulator_error.restype = runner.recorded_kernel.restype = ctypes.c_char_p
    runner.recorded_argument.restype = ctypes.c_void_p
    return runner


class Machine:
    def __init__(self, runner, multiprocessors=132):
        self.runner, self.memory = runner, Memory()
        runner.set_multiprocessors(multiprocessors)

    def call(self, launcher, *arguments):
        """Run a launcher. Structs are passed by reference, addresses as they are, and the workspace is added."""
        arguments = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        if hasattr(self.runner, f"{launcher}_workspace"):
            count = getattr(self.runner, f"{launcher}_workspace")(arguments[0])
            arguments.append(self.memory.empty(-(-count // ALIGNMENT) * ALIGNMENT).address)
        self.run(launcher, arguments)

    def run(self, launcher, arguments):
        error = getattr(self.runner, launcher)(*arguments)
        if error:
            message = self.runner.emulator_error().decode()
            raise RuntimeError(f"{launcher}: CUDA error {error}: {message or 'refused by the launcher'}")


class Emulator(Machine):
    def __init__(self, runner, backwards=False, multiprocessors=132):
        super().__init__(runner, multiprocessors)
        self.backwards = backwards

    def run(self, launcher, arguments):
        self.runner.emulator_reverse(int(self.backwards))
        super().run(launcher, arguments)


class Interpreter(Machine):
    """`kernels`: what ptx.parse made of nvcc's PTX."""

    def __init__(self, runner, kernels, multiprocessors=132):
        super().__init__(runner, multiprocessors)
        self.kernels = kernels

    def run(self, launcher, arguments):
        runner = self.runner
        runner.emulator_record(1)
        try:
            super().run(launcher, arguments)
            launches = [self.recorded(i) for i in range(runner.recorded_launches())]
        finally:
            runner.emulator_record(0)
        for name, grid, block, shared_bytes, values in launches:
            kernel = self.kernels[name]
            Launch(kernel, grid, block, shared_bytes, values, self.memory.regions, self.fma).run()

    def recorded(self, i):
        shape = (ctypes.c_int64 * 7)()
        self.runner.recorded_shape(i, shape)
        size, values = ctypes.c_int64(), []
        for j in range(self.runner.recorded_arguments(i)):
            address = self.runner.recorded_argument(i, j, ctypes.byref(size))
            values.append(ctypes.string_at(address, size.value))
        return self.runner.recorded_kernel(i).decode(), tuple(shape[:3]), tuple(shape[3:6]), shape[6], values

    def fma(self, a, b, c):
        arrays = [np.ascontiguousarray(x) for x in (a, b, c)]
        result = np.empty_like(arrays[0])
        function = {4: self.runner.fma_floats, 8: self.runner.fma_doubles}[result.itemsize]
        function(ctypes.c_int64(result.size), *(ctypes.c_void_p(x.ctypes.data) for x in (*arrays, result)))
        return result
