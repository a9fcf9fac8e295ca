"""A machine that compiles a Triton launch for an architecture, lints its PTX and interprets it on CPU tensors."""

import collections
import ctypes
import ctypes.util

import numpy as np
import triton
from spec import arithmetic
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from . import lint
from .interpreter import WARP, Launch
from .memory import Fault, Memory
from .parse import parse
from .values import FLOATING, INTEGER

PACKED = {"fp32": np.float32, "fp64": np.float64, "i32": np.int32, "i64": np.int64, "u64": np.uint64}


libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fma.argtypes, libm.fma.restype = [ctypes.c_double] * 3, ctypes.c_double
fma_of_doubles = np.frompyfunc(libm.fma, 3, 1)


def fma(a, b, c):
    return arithmetic.fma(a, b, c) if a.dtype == np.float32 else fma_of_doubles(a, b, c).astype(np.float64)


class TritonMachine:
    """Its ``run`` takes the place of triton_kernels/launch.py's. ``warps`` overrides what a launcher asks for."""

    def __init__(self, architecture, warps=None):
        self.target, self.warps = GPUTarget("cuda", architecture, 32), warps
        self.backend = make_backend(self.target)
        self.violations, self.launches = set(), collections.Counter()
        self.compiled = None  # a list takes the names and kernels of launches that are only compiled

    def run(self, kernel, grid, arguments, constants, options, reached):
        options = {**options, **({"num_warps": self.warps} if self.warps else {})}
        compiled, values = self.compile(kernel, arguments, {**constants, **options})
        if self.compiled is not None:
            self.launches[kernel.__name__] += 1
            return self.compiled.append((kernel.__name__, compiled))
        (code,) = parse(compiled.asm["ptx"]).values()
        tensors = [t for t in (*arguments, *reached) if hasattr(t, "data_ptr")]
        if contract(tensors):
            self.violations.update(lint.violations(code))
        self.launches[kernel.__name__] += 1
        values = [pack(kind, value) for kind, value in values if kind != "constexpr"]
        values += [bytes(size) for _, size in list(code.parameters.values())[len(values) :]]  # Triton's own scratch
        regions = {t.untyped_storage().data_ptr(): storage(t) for t in tensors}
        block, grid = (32 * compiled.metadata.num_warps, 1, 1), (*grid, 1, 1)[:3]
        TritonLaunch(code, grid, block, compiled.metadata.shared, values, list(regions.items()), fma).run()

    def compile(self, kernel, arguments, options):
        """(the kernel as a launch with these arguments would have it, [(type, value) of every parameter])"""
        bind = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialization, options = bind(*arguments, **options)
        given = {**options, "debug": False}
        parsed, signature, constants, attributes = kernel._pack_args(
            self.backend, given, bound, specialization, options
        )
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=parsed.__dict__)
        return compiled, list(zip(signature.values(), bound.values(), strict=True))


class TritonLaunch(Launch):
    """With the instructions that only Triton's kernels have."""

    def write(self, register, values, act):
        if register != "_":  # the sink
            super().write(register, values, act)

    def _arithmetic(self, opcode, operands, act):
        if opcode[-1] != "f32x2":
            return super()._arithmetic(opcode, operands, act)
        self.write(operands[0], FLOATING[opcode[0]](*self._pairs(operands, act)).view(np.uint64), act)

    def _fma(self, opcode, operands, act):
        if opcode[-1] != "f32x2":
            return super()._fma(opcode, operands, act)
        self.write(operands[0], self.fma(*self._pairs(operands, act)).view(np.uint64), act)

    def _pairs(self, operands, act):
        """Both halves of every thread's registers as floats, one after the other."""
        return [self.read(o, "b64", act).view(np.float32) for o in operands[1:]]

    def _cp(self, opcode, operands, act):
        """cp.async: at once here, whatever it is waited for; beyond the bytes that are given come zeros."""
        if opcode[2] in ("commit_group", "wait_group", "wait_all"):
            return
        size = int(operands[2], 0)
        given = self.read(operands[3] if len(operands) > 3 else operands[2], "u32", act)
        for offset in range(0, size, 4):
            shared, to = self._space(("st", "shared", "b32"), operands[0], offset, act)
            memory, source = self._space(("ld", "global", "b32"), operands[1], offset, act)
            values, inside = np.zeros(len(to), np.uint32), offset < given
            if inside.any():
                values[inside] = memory.load(source[inside], 4)
            shared.store(to, values)

    def _redux(self, opcode, operands, act):
        """An integer of all lanes of a warp; the whole warp takes part."""
        values = self.read(operands[1], opcode[-1], act).reshape(-1, WARP)
        if len(values) and (np.arange(self.count)[act].reshape(-1, WARP) % WARP != np.arange(WARP)).any():
            raise Fault("lanes of the mask do not take part")
        self.write(operands[0], np.repeat(INTEGER[opcode[2]].reduce(values, 1), WARP).astype(values.dtype), act)

    def _ldmatrix(self, opcode, operands, act):
        for register, memory, at in self._matrices(opcode, operands[1], operands[0], act):
            self.write(register, memory.load(at, 4), act)

    def _stmatrix(self, opcode, operands, act):
        for register, memory, at in self._matrices(opcode, operands[0], operands[1], act):
            memory.store(at, self.read(register, "b32", act))

    def _matrices(self, opcode, address, registers, act):
        """Matrices of 8 rows of 16 bytes, a register for each: lane l has the address of row l mod 8 of matrix l div 8,
        and of each matrix the four bytes at place l mod 4 in row l div 4."""
        if "trans" in opcode:
            raise NotImplementedError
        threads = np.arange(self.count)[act]
        lane, rows = threads % WARP, np.zeros(self.count, np.uint64)
        rows[threads] = self.addresses(address, act)
        array, size, owners = self._own("shared")
        for i, register in enumerate(r.strip() for r in registers.strip("{}").split(",")):
            at = rows[threads - lane + 8 * i + lane // 4] + (lane % 4 * 4).astype(np.uint64)
            if (at % np.uint64(4)).any() or (at + np.uint64(4) > size).any():
                raise Fault(f"access beyond the {size} bytes of shared memory")
            yield register, Memory([(0, array)]), at + (owners[threads] * size).astype(np.uint64)


def contract(tensors):
    """Whether a launch computes in float32, as the contract has it."""
    return not {str(t.dtype) for t in tensors} & {"torch.float64", "torch.float16", "torch.bfloat16"}


def storage(t):
    whole = t.untyped_storage()
    return np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * whole.nbytes()).from_address(whole.data_ptr()))


def pack(kind, value):
    return (np.uint64(value.data_ptr()) if kind[0] == "*" else PACKED[kind](value)).tobytes()
