"""The tensor core products of csrc/cuda on the emulated device of hopper.h."""

import ctypes
import subprocess
from pathlib import Path

import torch

from .arguments import ACTIVATIONS, SAVES_INPUT, structures
from .machines import FLAGS, FOLDER, compiler
from .memory import Memory

SOURCE = FOLDER / "tensor_cores_runner.cpp"
CUDA = FOLDER.parent.parent / "csrc" / "cuda"
NAMESPACE = "namespace pytorch_ext::PYTORCH_EXT_ISA"
ONE_KERNEL = {
    "plan.wide ? of_layout(WideTile{}) : ": "",
    "launch_tensor_core_product<S, Tile, Major::lines, Major::lines>(maps, work, device)": "cudaSuccess",
    "launch_tensor_core_product<S, Tile, Major::depth, Major::lines>(maps, work, device)": "cudaSuccess",
}
FAULTY_BEGIN = """
#include "simt.h"
//
#include "hopper.h"
using namespace pytorch_ext;
extern "C" const char* emulator_error() { return simt::error.c_str(); }
"""
FAULTY_PRODUCT = """
extern "C" int product_with_fault_FAULT(const TensorCoreProduct<BFloat16>* p, int multiprocessors, int late,
                                        int reversed) {
  hopper::start(late & 1, late & 2, late & 4);
  simt::reversed = reversed;
  return pytorch_ext::PYTORCH_EXT_ISA::fault_FAULT::tensor_core_product(
      *p, &cuTensorMapEncodeTiled, {nullptr, multiprocessors, simt::MOST_SHARED_BYTES});
}
"""
LATE_BOXES, LATE_PRODUCTS, LATE_STORES = 1, 2, 4
LAYOUTS = ("NT", "NN", "TN")  # of A (M, K) and B (K, N) in memory; N: rows are contiguous


def compile_library(folder, source, flags=()):
    library = Path(folder, "tensor_cores_runner.so")
    command = [compiler(), *FLAGS, *flags, str(source), "-o", str(library), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or result.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    runner = ctypes.CDLL(str(library))
    runner.emulator_error.restype = ctypes.c_char_p
    return runner


def compile_runner(folder):
    runner = compile_library(folder, SOURCE)
    runner.matrix_descriptor.restype, runner.swizzled.restype = ctypes.c_uint64, ctypes.c_uint32
    runner.tile_at.argtypes = [ctypes.c_int] * 3 + [ctypes.c_int64, ctypes.c_void_p]
    return runner


def compile_faulty_runner(folder, faults):
    """The kernel of narrow tiles and NT in one variant per fault, (text, what replaces it); product_with_fault_<i>."""
    files = ("tensor_cores.cuh", "tensor_cores_launch.cuh")
    text, program = "".join((CUDA / name).read_text() for name in files), FAULTY_BEGIN
    text = text.replace("#pragma once", "").replace('#include "tensor_cores.cuh"', "")
    for i, (old, new) in enumerate(faults):
        variant = text
        for a, b in ({old: new} | ONE_KERNEL).items():
            assert variant.count(a) == 1, f"{a} is not in {' and '.join(files)}"
            variant = variant.replace(a, b)
        variant = variant.replace(f"\n{NAMESPACE} {{", f"\n{NAMESPACE}::fault_{i} {{")
        program += variant + FAULTY_PRODUCT.replace("FAULT", str(i))
    source = Path(folder, "faulty.cpp")
    source.write_text(program)
    return compile_library(folder, source, ["-O1", f"-I{FOLDER}", f"-I{CUDA}"])


def operands(layout, m, n, k, dtype, batch=()):
    """Random A and B, whose sums are rounded in no other place than wgmma's."""
    a, b = torch.randn(*batch, m, k).to(dtype), torch.randn(*batch, k, n).to(dtype)
    a = a.mT.contiguous().mT if layout[0] == "T" else a
    b = b.mT.contiguous().mT if layout[1] == "T" else b
    return a, b


def struct_of(memory, a, b, bias=None, activation="none", with_mask=False, dtype=torch.bfloat16):
    """(TensorCoreProduct of A (..., M, K) and B (..., K, N), its outputs C, preactivation, mask)"""
    types = structures(dtype)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n = a.shape[-2:], b.shape[-1]
    c = memory.empty(*batch, m, n, dtype=dtype)
    z = memory.empty(*batch, m, n, dtype=dtype) if activation in SAVES_INPUT else None
    mask = memory.empty(m, -(-n // 64), dtype=torch.int64) if with_mask else None
    product = types.Product(m, n, k)
    for view, t in ((product.A, a), (product.B, b)):
        view.data, view.row, view.column = memory.put(t), *t.stride()[-2:]
    product.C, product.c_row, product.bias = c.address, n, memory.put(bias)
    product.activation, product.preactivation = ACTIVATIONS.index(activation), z and z.address
    product.batch = batch[0] if batch else 1
    product.c_batch = m * n
    strides = [t.stride(0) if t.dim() > 2 and t.shape[0] > 1 else 0 for t in (a, b)]
    return types.TensorCoreProduct(product, *strides, mask and mask.address), (c, z, mask)


class TensorCores:
    """Runs products on as many multiprocessors as said; what is late and backwards as in hopper.h and simt.h."""

    def __init__(self, runner, late=0, backwards=False, multiprocessors=3, fault=None):
        self.runner, self.late, self.backwards, self.multiprocessors = runner, late, backwards, multiprocessors
        self.fault = fault

    def product(self, a, b, *options, **more):
        """[C, preactivation or None, mask or None]"""
        memory = Memory(a.dtype, alignment=16)
        p, outputs = struct_of(memory, a, b, *options, **more, dtype=a.dtype)
        name = f"product_with_fault_{self.fault}"
        if self.fault is None:
            name = {torch.bfloat16: "product_of_bfloat16", torch.float16: "product_of_half"}[a.dtype]
        error = getattr(self.runner, name)(ctypes.byref(p), self.multiprocessors, self.late, int(self.backwards))
        if error:
            raise RuntimeError(f"CUDA error {error}: {self.runner.emulator_error().decode()}")
        memory.check()
        return [o and o.tensor for o in outputs]

    def plan(self, a, b, memory=None):
        """What the launcher makes of a product, by name; None where it does not cover it."""
        memory = memory or Memory(a.dtype, alignment=16)
        p, _ = struct_of(memory, a, b)
        found = (ctypes.c_int64 * 36)()
        if not self.runner.plan(ctypes.byref(p), self.multiprocessors, found):
            return None
        head = ("wide", "down", "across", "batch", "steps", "a_major", "a_is_batched", "b_major", "b_is_batched")
        plan = dict(zip(head, found, strict=False))
        for name, start in (("a", 9), ("b", 18), ("c", 27)):
            size, stride, box = found[start + 1 : start + 4], found[start + 4 : start + 6], found[start + 6 : start + 9]
            plan[name] = {"size": size, "stride": stride, "box": box}
        return plan
