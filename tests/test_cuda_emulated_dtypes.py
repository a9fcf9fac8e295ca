# ruff: noqa: F811 (fixtures that another file has)
"""The CUDA kernels in float64, bfloat16 and float16, run by the SIMT emulator: the bits of the CPU library."""

import pytest
import torch
from emulator import checks, machines, small
from emulator.arguments import ACTIVATIONS
from test_cuda_emulated import pytestmark, runner  # noqa: F401

# libm's functions are those of the CPU library here, so that float64 is compared bit for bit too.
DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def machine(request, runner, dtype):
    return machines.Emulator(runner(dtype), dtype, request.param)


@pytest.mark.parametrize("multiprocessors", [132, 1])
@pytest.mark.parametrize("backwards", [False, True])
def test_products_in_float64(runner, backwards, multiprocessors):
    machine = machines.Emulator(runner(torch.float64), torch.float64, backwards, multiprocessors)
    small.products(machine)
    small.linear_forward(machine)
    small.linear_gradients(machine)
    small.functions(machine)
    small.attention(machine)
    checks.check_linear_forward(machine, 130, 129, 700)
    checks.check_matmul(machine, *(checks.random(2, *shape, dtype=torch.float64) for shape in ((3, 4, 5), (3, 5, 6))))


def test_elementwise_kernels(machine):
    small.elementwise(machine)
    for count in (0, 1, 7, 8, 9, 1024):
        checks.check_activation(machine, "gelu", count)
        checks.check_dropout(machine, count, 0.5, key=count)


def test_linear_gradients(machine):
    for activation in ACTIVATIONS:
        checks.check_linear_backward(machine, 70, 33, 5, activation)
        checks.check_linear_backward(machine, 70, 40, 5, activation)
    checks.check_linear_backward(machine, 5000, 3, 2)


def test_losses(machine):
    small.losses(machine)
    checks.check_elementwise_loss(machine, "binary_cross_entropy_with_logits", (9000,), special=True)


def test_row_operations(machine):
    small.rows(machine)
    checks.check_softmax(machine, (3, 7, 5), dim=1)
    checks.check_softmax(machine, (20, 70), special=True)


def test_sums_and_updates(machine):
    small.sums(machine)
    small.updates(machine)
    small.graphs(machine)
