"""What Triton makes of its kernels: only the contract's instructions, and the bits of the CPU library."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_native
from ptx import lint
from ptx.kernel_sources import kernel_sources
from ptx.parse import parse
from ptx.triton_cases import CASES

from pytorch_ext import triton_path

TESTS = Path(__file__).resolve().parent
pytestmark = [
    needs_native,
    pytest.mark.skipif(triton_path.triton_version() is None, reason="there is no package named triton"),
]

# All cases on one architecture; on the others every kernel once, on one of them with other numbers of warps.
EXTENTS = {80: ("brief", "2"), 90: ("brief",), 100: ("every",)}


@functools.cache
def report(architecture, *extent):
    """What a process of its own says about the kernels compiled for an architecture."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])
    command = [sys.executable, "-m", "ptx.triton_cases", str(architecture), *extent]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def check(architecture, *extent):
    """Every kernel in the sources has run, with the CPU's bits; the one of TMA only where there is TMA."""
    found = report(architecture, *extent)
    failed = {name: text for name, text in found["failed"].items() if text}
    assert not failed, "\n".join(failed.values())
    assert found["failed"].keys() == set(CASES)
    assert found["violations"] == []
    assert found["never"] == ([] if architecture >= 90 else ["tensor_core_product_kernel"])


@pytest.mark.parametrize("architecture", EXTENTS)
def test_compiled_kernels_have_the_contract_s_instructions_and_the_cpu_s_bits(architecture):
    check(architecture, *EXTENTS[architecture])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EXTENTS)
def test_several_numbers_of_warps_on_every_architecture(architecture):
    check(architecture, "full")


FUSED = """
.visible .entry kernel(.param .u64 kernel_param_0)
{
	.reg .b64 %rd<9>;
	INSTRUCTION
	ret;
}
"""


@pytest.mark.parametrize(
    ("instruction", "accepted"),
    [
        ("fma.rn.f32x2 %rd1, %rd2, %rd3, %rd4;", True),
        ("add.rn.f32x2 %rd1, %rd2, %rd3;", True),
        ("add.f32x2 %rd1, %rd2, %rd3;", False),
        ("fma.rn.ftz.f32x2 %rd1, %rd2, %rd3, %rd4;", False),
        ("mul.rz.f32x2 %rd1, %rd2, %rd3;", False),
    ],
)
def test_the_lint_knows_pairs_of_floats(instruction, accepted):
    kernel = parse(FUSED.replace("INSTRUCTION", instruction))["kernel"]
    assert (lint.violations(kernel) == []) == accepted


def test_every_kernel_has_its_formula_above_it_and_fits_a_screen():
    sources = kernel_sources()
    assert {"softmax_forward_kernel", "attention_key_gradient_kernel", "adam_kernel"} <= sources.keys()
    assert [name for name, source in sources.items() if not re.search(r"\S [-*]?= ", source.says)] == []
    assert {name: source.lines for name, source in sources.items() if source.lines > 60} == {}


def minus_signs(source):
    """Those before what is no constant, in functions that Triton compiles: the decorated ones."""
    functions = [f for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef) and f.decorator_list]
    operators = [node for f in functions for node in ast.walk(f) if isinstance(node, ast.UnaryOp)]
    negated = [node.operand for node in operators if isinstance(node.op, ast.USub)]
    names = [getattr(node, "attr", getattr(node, "id", "")) for node in negated if not isinstance(node, ast.Constant)]
    return [name for name in names if not name.isupper()]


def test_no_kernel_has_a_minus_sign_which_older_versions_take_for_a_subtraction_from_zero():
    assert minus_signs("@kernel\ndef f(x):\n    return -x + -X - 1") == ["x"]
    found = {file.name: minus_signs(file.read_text()) for file in (TESTS.parent / "triton_kernels").glob("*.py")}
    assert not any(found.values()), found


def test_nothing_is_launched_but_through_the_helper_that_pins_the_options():
    folder = TESTS.parent / "triton_kernels"
    sources = {file.name: file.read_text() for file in folder.glob("*.py")}
    del sources["launch.py"], sources["interpreter.py"]  # which gets the options of the helper
    assert [name for name, text in sources.items() if "triton.jit" in text or "[grid]" in text] == []
    assert '"enable_fp_fusion": False' in (folder / "launch.py").read_text()
