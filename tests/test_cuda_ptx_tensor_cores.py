"""What nvcc makes of the tensor core products: wgmma that runs on, no spills, and nothing for other architectures.

These kernels are outside the float32 contract, so that lint.py does not ask for its instructions here.
"""

import collections
import functools
import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from ptx import nvcc

from pytorch_ext import build

SOURCE = Path(__file__).resolve().parent.parent / "csrc" / "cuda" / "tensor_cores.cu"
DTYPES, TILES, LAYOUTS = ("8BFloat16", "4Half"), (256, 128), ((0, 0), (0, 1), (1, 1))
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.S,
)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ )?([A-Z0-9]+)((?:\.\w+)*)([^;]*);", re.M)


def disassembler():
    """Triton's wheel brings one."""
    triton = importlib.util.find_spec("triton")
    found = [Path(p, "backends/nvidia/bin/cuobjdump") for p in (triton.submodule_search_locations if triton else [])]
    return next((str(path) for path in found if path.is_file()), None)


pytestmark = pytest.mark.skipif(nvcc.executable() is None, reason="there is no nvcc")
needs_disassembler = pytest.mark.skipif(disassembler() is None, reason="there is no cuobjdump")


@functools.cache
def compiled():
    """(ptxas's report, {kernel of sm_90a: [(instruction, modifiers, operands)]})"""
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ("80", "90a")]
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "tensor_cores.o"))
        command = [nvcc.executable(), *build.CUDA_FLAGS, *targets, "-Xptxas", "-v", "-c", str(SOURCE), "-o", output]
        result = subprocess.run(command, capture_output=True, text=True)
        report = result.stdout + result.stderr
        assert result.returncode == 0, report
        if disassembler() is None:
            return report, {}
        command = [disassembler(), "--dump-sass", "-arch", "sm_90a", output]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\s+Function : (\w+)$", text, flags=re.M)[1:]
    return report, {name: INSTRUCTION.findall(body) for name, body in zip(sections[::2], sections[1::2], strict=True)}


def entries(architecture):
    """{kernel: (bytes in local memory, registers)}"""
    found = (entry for entry in ENTRY.findall(compiled()[0]) if entry[1] == architecture)
    return {name: (sum(map(int, local)), int(registers)) for name, _, *local, registers in found}


def is_kernel(name, dtype, columns, layout):
    majors = "".join(f"LNS0_5MajorE{m}E" if i == 0 else f"LS\\d_{m}E" for i, m in enumerate(layout))
    return re.search(rf"tensor_core_product_kernelINS_{dtype}ENS0_14TensorCoreTileILi{columns}EEE{majors}", name)


def test_a_kernel_for_every_dtype_tile_and_layout():
    names = entries("sm_90a")
    assert len(names) == len(DTYPES) * len(TILES) * len(LAYOUTS)
    for dtype in DTYPES:
        for columns in TILES:
            for layout in LAYOUTS:
                assert sum(bool(is_kernel(name, dtype, columns, layout)) for name in names) == 1, (
                    dtype,
                    columns,
                    layout,
                )


def test_nothing_is_spilled():
    assert {local for local, _ in entries("sm_90a").values()} == {0}
    # Three warpgroups begin with 65536 / 384 registers a thread, in steps of 8; setmaxnreg divides them anew.
    assert {registers for _, registers in entries("sm_90a").values()} == {168}


def test_products_are_not_serialised_and_registers_are_handed_over():
    """ptxas says C7510 and its like where wgmma waits for wgmma, C7508 where it ignores setmaxnreg."""
    report = compiled()[0]
    assert not re.findall(r".*(?:\(C75\d\d\)|serialized|setmaxnreg).*", report)


def test_other_architectures_get_empty_kernels():
    assert entries("sm_80").keys() == entries("sm_90a").keys()
    assert max(registers for _, registers in entries("sm_80").values()) < 16


@needs_disassembler
def test_the_instructions_are_those_of_the_tensor_cores_and_the_copy_engine():
    kernels = compiled()[1]
    assert kernels.keys() == entries("sm_90a").keys()
    for name, code in kernels.items():
        count = collections.Counter(instruction for instruction, *_ in code)
        assert count["HGMMA"] and count["UTMALDG"] and count["UTMASTG"] and count["USETMAXREG"], (name, count)
        assert not count["LDL"] + count["STL"] + count["HMMA"], (name, count)
        columns = re.search(r"TensorCoreTileILi(\d+)E", name)[1]
        products = [(modifiers, operands) for instruction, modifiers, operands in code if instruction == "HGMMA"]
        wanted = {f".64x{columns}x16.F32" + (".BF16" if "8BFloat16" in name else "")}
        assert {modifiers for modifiers, _ in products} == wanted
        # Four to a stage, of which only the last one is waited for.
        assert len(products) == 4 * sum("gsb0" in operands for _, operands in products)
        transposed = {operands.count(".tnspA") * 2 + operands.count(".tnspB") for _, operands in products}
        assert transposed == {next(2 * a + b for a, b in LAYOUTS if is_kernel(name, r"\w+", columns, (a, b)))}
