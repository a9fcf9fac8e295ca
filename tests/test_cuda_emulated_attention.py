# ruff: noqa: F811 (fixtures that another file has)
"""scaled_dot_product_attention's launchers in the SIMT emulator: the bits of the CPU library."""

import ctypes

import pytest
import torch
from emulator import checks, ops
from test_cuda_emulated import compiled_runner, machine, pytestmark  # noqa: F401

SHAPES = [((1,), 1, 1, 1, 1), ((2, 3), 5, 7, 4, 6), ((2,), 40, 33, 64, 9), ((1,), 300, 270, 20, 5)]


@pytest.fixture(params=[1 << 25, 1 << 15], ids=["at once", "in pieces"])
def pieces(request):
    """How many scores are in memory at a time."""
    runner = compiled_runner(torch.float32)
    runner.set_most_scores(request.param)
    yield request.param
    runner.set_most_scores(1 << 25)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("mask", [None, "added", "allowed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(machine, pieces, shape, mask, special):
    checks.check_attention(machine, checks.attention_operands(machine, *shape, mask, special))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, ((3,), 270, 600, 8, 4), ((2,), 600, 130, 8, 4)], ids=str)
def test_causal_outputs_and_gradients(machine, pieces, shape, special):
    checks.check_attention(machine, checks.attention_operands(machine, *shape, None, special), is_causal=True)


def test_a_mask_and_causality_together(machine):
    for mask in ("added", "allowed"):
        checks.check_attention(machine, checks.attention_operands(machine, (2,), 140, 150, 6, 3, mask), is_causal=True)


def test_queries_that_see_nothing_have_no_weights(machine):
    q, k, v, _ = checks.attention_operands(machine, (2,), 6, 5, 4, 3)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[4] = True
    y = ops.scaled_dot_product_attention(machine, q, k, v, mask)
    assert (y[:, [0, 1, 2, 3, 5]] == 0).all() and (y[:, 4] != 0).any()
    for hiding in (mask, torch.full((6, 5), -float("inf"))):
        checks.check_attention(machine, (q, k, v, hiding))


def test_broadcast_strided_and_scaled_operands(machine, pieces):
    q, k, v, _ = checks.attention_operands(machine, (4,), 50, 60, 8, 6)
    checks.check_attention(machine, (q[::2, ::2], k[:2].mT.contiguous().mT, v[:2, :, 1::2], None), scale=-0.3)
    mask = (torch.rand(1, 60) > 0.5).expand(50, 60)
    checks.check_attention(machine, (q, k[:1].expand_as(k), v[:1].expand_as(v), mask), scale=0.0)


@pytest.mark.parametrize("wanted", [(i & 1, i & 2, i & 4) for i in range(1, 7)], ids=str)
def test_any_subset_of_the_gradients(machine, wanted):
    operands = checks.attention_operands(machine, (2,), 20, 30, 5, 4, "allowed")
    checks.check_attention(machine, operands, wanted=[bool(w) for w in wanted])


def test_the_workspace_is_bounded(machine):
    """And grows neither with the number of heads nor, beyond a block, with that of queries."""
    needed = {}
    for heads, queries in [(1, 1 << 14), (1 << 10, 1 << 14), (1 << 10, 1 << 16)]:
        p = machine.structures.AttentionOutput()
        p.of.heads, p.of.queries, p.of.keys, p.of.width, p.of.value_width = heads, queries, 1 << 14, 1, 1
        needed[heads, queries] = machine.runner.attention_workspace(ctypes.byref(p))
    assert all((1 << 25) <= n <= (1 << 25) + (1 << 26) for n in needed.values()), needed
