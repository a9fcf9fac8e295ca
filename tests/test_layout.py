"""One op is found by its name in every place, and no instruction set leaks into another one's path."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pytorch_ext import build

ROOT = Path(__file__).resolve().parent.parent

# Pages of pytorch_ext/ops/ that hold no op but what the ops share.
SHARED_PAGES = {"__init__", "checks", "composition", "losses", "one_pass", "paths"}

# The file of an op in each place. EXCEPTIONS name another stem, or None where the op needs nothing there.
PLACES = {
    "test": "tests/test_{op}.py",
    "autograd": "csrc/autograd/{op}.cpp",
    "launch": "csrc/launch/{op}.cpp",
    "cpu": "csrc/cpu/{op}.cpp",
    "cuda": "csrc/cuda/{op}.cu",
    "triton": "triton_kernels/{op}.py",
}
OPTIMIZER = {"test": "optim", "autograd": None, "schema": None}
OPTIMIZER |= dict.fromkeys(("launch", "cpu", "cuda", "triton"), "optimizers")
ELEMENTWISE_LOSS = dict.fromkeys(PLACES, "elementwise_loss")
EXCEPTIONS = {
    "matmul": {"cpu": "product", "cuda": "product"},  # the one of linear
    "linear_cross_entropy": {"cpu": "cross_entropy", "cuda": "cross_entropy"},  # and the product
    "log_softmax": dict.fromkeys(PLACES, "softmax"),  # one kernel, one more logarithm
    "nll_loss": {"cpu": "cross_entropy", "cuda": "cross_entropy"},  # the second half of it
    "mse_loss": ELEMENTWISE_LOSS,  # one kernel, the loss is a functor
    "binary_cross_entropy": ELEMENTWISE_LOSS,
    "binary_cross_entropy_with_logits": ELEMENTWISE_LOSS,
    "sgd": OPTIMIZER,
    "adam": OPTIMIZER,
    "adamw": OPTIMIZER,
    "clip_grad_norm": OPTIMIZER,
}

# Sources that hold no op but what the kernels of several ops share.
SHARED_SOURCES = {"cuda", "functions", "new_tensors", "optimizer_groups", "reduce", "self_test", "stock_products"}
SHARED_SOURCES |= {"tensor_cores"}

OPS = sorted(page.stem for page in (ROOT / "pytorch_ext" / "ops").glob("*.py") if page.stem not in SHARED_PAGES)


def stem(op, place):
    return EXCEPTIONS.get(op, {}).get(place, op)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS)
def test_an_op_is_found_by_its_name_in_every_place(op, place):
    name = stem(op, place)
    if name is not None:
        file = PLACES[place].format(op=name)
        assert (ROOT / file).is_file(), f"{op}: expected {file}, got no such file"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_a_schema(op):
    name = stem(op, "schema")
    if name is not None:
        schemas = (ROOT / "csrc" / "ops.cpp").read_text()
        assert re.search(rf'"{name}\w*\(', schemas), f"{op}: expected a schema in csrc/ops.cpp, got none"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_a_public_name(op):
    public = "".join((ROOT / "pytorch_ext" / f"{name}.py").read_text() for name in ("functional", "optim"))
    assert re.search(rf"\b{op}_?\b", public, re.IGNORECASE), f"{op}: expected it in functional.py or optim.py"


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_measured(op):
    measured = (ROOT / "benchmarks" / "cases.py").read_text()
    assert re.search(rf"\b{op}_?\b", measured, re.IGNORECASE), f"{op}: expected a row in benchmarks/cases.py"


@pytest.mark.parametrize("place", ["autograd", "launch"])
def test_no_native_source_is_left_without_its_op(place):
    sources = {source.stem for source in (ROOT / "csrc" / place).glob("*.cpp")}
    owned = {stem(op, place) for op in [*OPS, *EXCEPTIONS]} | SHARED_SOURCES
    assert sources <= owned, f"csrc/{place}: {sorted(sources - owned)} have no page in pytorch_ext/ops/"


@pytest.mark.parametrize("source", build.kernel_sources(ROOT / "csrc"), ids=lambda source: source.name)
def test_cpu_kernels_know_no_torch(source):
    assert not re.search(r'#include [<"](ATen|c10|torch|pybind11)/', source.read_text())


def test_no_file_asks_for_the_processor_of_the_build_machine():
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "pytorch_ext" / "build.py"]
    files += [file for file in (ROOT / "csrc").rglob("*") if file.is_file()]
    flag = "-march=" + "native"
    assert [file.name for file in files if flag in file.read_text()] == []


# A weak symbol that two instruction sets share would be linked once, so that an older processor could meet the newer
# one's instructions; every symbol of a kernel therefore carries its namespace.
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
@pytest.mark.parametrize("isa", [name for name in build.instruction_sets() if name != "baseline"])
def test_no_weak_symbol_of_a_kernel_is_shared_between_instruction_sets(isa):
    objects = [str(file) for file in ROOT.glob(f"build/temp.*/{isa}/**/*.o")]
    if not objects:
        pytest.skip(f"no objects of {isa} in build/")
    listing = subprocess.run(["nm", "-C", "--defined-only", *objects], capture_output=True, text=True, check=True)
    weak = [line for line in listing.stdout.splitlines() if re.match(r"[0-9a-f]+ [WVu] ", line)]
    assert [line for line in weak if f"pytorch_ext::{isa}::" not in line] == []
