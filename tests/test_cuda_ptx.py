"""What nvcc makes of the CUDA kernels: only the contract's instructions, no spills, and the bits of the CPU library."""

import collections
import re

import pytest
import torch
from ptx import interpreter, lint, nvcc
from ptx.compiled import InterpretedKernels, InterpretedProducts, InterpretedSteps, compiled
from ptx.memory import Fault
from ptx.parse import parse
from test_cuda_emulated import compiled_runner, runner  # noqa: F401
from test_cuda_emulated import pytestmark as needs_runner

needs_nvcc = [*needs_runner, pytest.mark.skipif(nvcc.executable() is None, reason="there is no nvcc")]


class TestSm80(InterpretedSteps):
    pytestmark = needs_nvcc
    architecture, blocks = "sm_80", (1,)

    def test_its_instructions_are_those_of_sm_90_but_for_clusters(self):
        """So the interpreter runs them there. Rows of clusters have no code here."""
        ours, theirs = self.kernels, compiled("sm_90", self.dtype)[0]
        assert ours.keys() == theirs.keys()
        different = [name for name, kernel in ours.items() if kernel.code != theirs[name].code]
        of_clusters = [name for name in different if "ClusterRow" in name]
        assert len(of_clusters) > 6 and all(len(ours[name].code) < 5 for name in of_clusters)
        assert all("train_steps_kernel" in name for name in different if name not in of_clusters)


class TestSm90(InterpretedKernels, InterpretedProducts, InterpretedSteps):
    pytestmark = needs_nvcc
    architecture = "sm_90"

    @pytest.mark.parametrize(("a_depth", "b_depth"), [(False, False), (True, False), (False, True), (True, True)])
    def test_large_tiles_move_16_bytes_at_once(self, a_depth, b_depth):
        """Of shared memory always, of C where it may be, and of operands whose lines are beside each other."""
        majors = rf"5MajorE{int(not a_depth)}ELS\d_{int(not b_depth)}E"
        (kernel,) = [k for name, k in self.kernels.items() if re.search(rf"4TileILi128E.*{majors}f", name)]
        found = collections.Counter(".".join(instruction.opcode) for instruction in kernel.code)
        assert found["ld.shared.v4.f32"] == 16 * 4 and not found["ld.shared.f32"]
        assert found["ld.global.v4.f32"] >= 16 and found["st.global.v4.b32"] >= 16
        assert found["cp.async.cg.shared.global"] == 4 * ((not a_depth) + (not b_depth))  # each of two at two places


KERNEL = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
{
	.reg .pred %p<3>;
	.reg .f32 %f<5>;
	.reg .b32 %r<5>;
	.reg .b64 %rd<5>;
	BODY
	ret;
}
"""


def kernel_of(body):
    return parse(KERNEL.replace("BODY", body))["kernel"]


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32 %f1, %f2, %f3;",
        "mul.ftz.f32 %f1, %f2, %f3;",
        "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
        "mad.f32 %f1, %f2, %f3, %f4;",
        "div.full.f32 %f1, %f2, %f3;",
        "div.approx.f32 %f1, %f2, %f3;",
        "sqrt.approx.f32 %f1, %f2;",
        "ex2.approx.f32 %f1, %f2;",
        "add.rz.f32 %f1, %f2, %f3;",
        "max.f32 %f1, %f2, %f3;",
        "min.f32 %f1, %f2, 0f80000000;",
        "max.NaN.f32 %f1, %f2, 0f3F800000;",
        "setp.lt.ftz.f32 %p1, %f2, %f3;",
        "cvt.rz.f32.s32 %f1, %r2;",
        "fma.rn.sat.f32 %f1, %f2, %f3, %f4;",
        "atom.global.add.f32 %f1, [%rd1], %f2;",
    ],
)
def test_the_lint_refuses(instruction):
    assert len(lint.violations(kernel_of(instruction))) == 1


def test_the_lint_accepts_what_the_contract_has():
    accepted = ["add.rn.f32 %f1, %f2, %f3;", "max.f32 %f1, %f2, 0f00000000;", "setp.lt.f32 %p1, %f2, %f3;"]
    accepted += ["cvt.rn.f32.s32 %f1, %r2;", "ld.global.nc.v2.f32 {%f1, %f2}, [%rd1];", "neg.f32 %f1, %f2;"]
    assert lint.violations(kernel_of("\n".join(accepted))) == []


def run(body, array, threads=32):
    """Runs a kernel whose parameter is the array's address."""
    address = array.ctypes.data
    arguments, regions = [address.to_bytes(8, "little")], [(address, array.view("u1"))]
    interpreter.Launch(kernel_of(body), (1, 1, 1), (threads, 1, 1), 0, arguments, regions, None).run()


STORE = (
    "ld.param.u64 %rd1, [kernel_param_0];\nmov.u32 %r1, %tid.x;\n"
    "mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\n"
)


def test_diverged_threads_meet_again():
    array = torch.zeros(32, dtype=torch.int32).numpy()
    body = STORE + "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra $ELSE;\nmov.u32 %r2, 5;\nbra.uni $END;\n"
    body += "$ELSE:\nmov.u32 %r2, 3;\n$END:\nshfl.sync.bfly.b32 %r3|%p2, %r2, 16, 31, -1;\nst.global.u32 [%rd3], %r3;"
    run(body, array)
    assert array.tolist() == [5] * 16 + [3] * 7 + [5] * 9


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (STORE + "st.global.u32 [%rd3+4], %r1;", "in no array"),
        (STORE + "st.global.u32 [%rd3+2], %r1;", "no multiple of 4"),
        (STORE + "st.global.v2.u32 [%rd3], {%r1, %r1};", "no multiple of 8"),
        (STORE + "setp.lt.u32 %p1, %r1, 7;\n@%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;", "do not take part"),
        ("call.uni\n__assertfail,\n(\nparam0\n);", "a requirement does not hold"),
    ],
)
def test_the_interpreter_refuses(body, message):
    with pytest.raises(Fault, match=message):
        run(body, torch.zeros(32, dtype=torch.int32).numpy())
