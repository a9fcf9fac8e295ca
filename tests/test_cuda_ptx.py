"""What nvcc makes of the CUDA kernels: only the contract's instructions, no spills, and the bits of the CPU library."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from emulator import checks, machines, ops
from emulator.arguments import ACTIVATIONS
from ptx import interpreter, lint, nvcc
from ptx.memory import Fault
from ptx.parse import parse
from test_cuda_emulated import one_thread, runner  # noqa: F401
from test_cuda_emulated import pytestmark as needs_runner

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
needs_nvcc = pytest.mark.skipif(nvcc.executable() is None, reason="there is no nvcc")


@functools.cache
def compiled(architecture):
    with tempfile.TemporaryDirectory() as folder:
        text, usage = nvcc.compile_to_ptx(architecture, Path(folder))
    return parse(text), usage


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(params=[132, 1])
def machine(request, architecture):
    return machines.Interpreter(runner(), compiled(architecture)[0], request.param)


@needs_nvcc
class TestCompiledKernels:
    pytestmark = needs_runner

    def test_only_operations_of_the_contract(self, architecture):
        kernels, _ = compiled(architecture)
        assert len(kernels) > 30
        assert [line for kernel in kernels.values() for line in lint.violations(kernel)] == []

    def test_no_register_is_spilled(self, architecture, record_property):
        kernels, usage = compiled(architecture)
        assert usage.keys() == kernels.keys()
        record_property("registers", {name: registers for name, (registers, _) in usage.items()})
        assert {name: spilled for name, (_, spilled) in usage.items() if spilled} == {}

    def test_products(self, machine):
        for m, n, k in [(1, 1, 1), (5, 7, 257), (33, 3, 20)]:
            checks.check_linear_forward(machine, m, n, k, special=True)
        checks.check_matmul(machine, checks.random(2, 20, 6)[..., ::2], checks.random(2, 5, 3).mT)

    def test_activations(self, architecture):
        machine = machines.Interpreter(runner(), compiled(architecture)[0])
        for activation in ACTIVATIONS:
            checks.check_linear_forward(machine, 9, 20, 3, activation, special=True)
            checks.check_linear_backward(machine, 9, 20, 3, activation)

    def test_losses_and_row_operations(self, architecture):
        machine = machines.Interpreter(runner(), compiled(architecture)[0])
        checks.check_elementwise_loss(machine, "mse_loss", (5000,), special=True)
        checks.check_elementwise_loss(machine, "mse_loss", (70,), weighted=True)
        checks.check_elementwise_loss(machine, "binary_cross_entropy_with_logits", (70,), "none", special=True)
        checks.check_elementwise_loss(machine, "binary_cross_entropy_with_logits", (70,), "sum", pos_weighted=True)
        for columns in (10, 1100, 4200):
            checks.check_softmax(machine, (2, columns))
            checks.check_softmax(machine, (2, columns), logarithm=True)
            checks.check_cross_entropy(machine, (4, columns))
        checks.check_cross_entropy(machine, (4, 70), "sum", weighted=True, smoothing=0.1, special=True)
        checks.check_cross_entropy(machine, (4, 70), "none", smoothing=0.1)
        checks.check_cross_entropy(machine, (2, 7, 3), weighted=True)

    def test_optimisers(self, architecture):
        machine = machines.Interpreter(runner(), compiled(architecture)[0])
        checks.check_sgd(machine, [1, 1030], special=True)
        checks.check_adam(machine, [1, 1030, 7], special=True)
        checks.check_adam(machine, [33], decoupled=True, amsgrad=True)

    def test_an_access_beyond_an_array_is_noticed(self, machine):
        put = machine.memory.put
        machine.memory.put = lambda t: put(t[..., :-1, :]) if t is not None and t.dim() > 1 else put(t)
        with pytest.raises(Fault, match="product_kernel.*in no array"):
            ops.product(machine, torch.ones(3, 4), torch.ones(4, 5))


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
        ("trap;", "a requirement does not hold"),
    ],
)
def test_the_interpreter_refuses(body, message):
    with pytest.raises(Fault, match=message):
        run(body, torch.zeros(32, dtype=torch.int32).numpy())
