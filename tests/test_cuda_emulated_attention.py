# ruff: noqa: F811 (fixtures that another file has)
"""scaled_dot_product_attention's launchers in the SIMT emulator: the bits of the CPU library."""

import ctypes

import pytest
import torch
from accuracy import assert_same_bits
from emulator import checks, machines, ops
from test_cuda_emulated import compiled_runner, machine, pytestmark  # noqa: F401

SHAPES = [((1,), 1, 1, 1, 1), ((2, 3), 5, 7, 4, 6), ((2,), 40, 33, 64, 9), ((1,), 300, 270, 20, 5)]


WHERE = {"in one launch": (1 << 25, 227 << 10), "at once": (1 << 25, 4 << 10), "in pieces": (1 << 15, 4 << 10)}


@pytest.fixture(params=WHERE.values(), ids=WHERE)
def pieces(request):
    """How many scores are in memory at a time, unless a block's fit its shared memory."""
    runner = compiled_runner(torch.float32)
    scores, shared_bytes = request.param
    runner.set_most_scores(scores)
    runner.set_shared_bytes(shared_bytes)
    yield scores
    runner.set_most_scores(1 << 25)
    runner.set_shared_bytes(227 << 10)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("mask", [None, "added", "allowed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(machine, pieces, shape, mask, special):
    checks.check_attention(machine, checks.attention_operands(machine, *shape, mask, special))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, ((3,), 270, 600, 8, 4), ((2,), 600, 130, 8, 4)], ids=str)
def test_causal_outputs_and_gradients(machine, pieces, shape, special):
    checks.check_attention(machine, checks.attention_operands(machine, *shape, None, special), is_causal=True)


def test_a_mask_and_causality_together(machine, pieces):
    for mask in ("added", "allowed"):
        checks.check_attention(machine, checks.attention_operands(machine, (2,), 140, 150, 6, 3, mask), is_causal=True)
    q, k, v, _ = checks.attention_operands(machine, (1,), 140, 150, 6, 3)
    mask = torch.full((140, 150), float("inf"))
    checks.check_attention(machine, (q, k, v, mask), is_causal=True)


def check_forward(machine, operands, is_causal=False):
    y = ops.scaled_dot_product_attention(machine, *operands, is_causal)
    expected = checks.library.scaled_dot_product_attention_forward(*operands, is_causal, None)
    assert_same_bits(y, expected, f"attention {(*operands[0].shape, *operands[1].shape)}")


@pytest.mark.parametrize("mask", [None, "added", "allowed"])
@pytest.mark.parametrize(("keys", "queries"), [(330, 64), (600, 32), (700, 64), (801, 32), (1400, 32), (2001, 16)])
def test_as_many_queries_in_a_block_as_fit(keys, queries, mask):
    """On one multiprocessor, which blocks of any size fill."""
    machine = machines.Emulator(compiled_runner(torch.float32), torch.float32, True, 1)
    for width, value_width in [(40, 64), (32, 70)]:
        operands = checks.attention_operands(machine, (1,), 70, keys, width, value_width, mask)
        before = machines.launches_of(machine.runner)
        check_forward(machine, operands)
        launched = machines.launches_of(machine.runner) - before
        assert [name for name in launched if f"attention_block_kernelILi{queries}E" in name], launched


def test_scores_that_fit_no_shared_memory(machine):
    for keys, width in [(3000, 4), (10, 257)]:
        before = machines.launches_of(machine.runner)
        check_forward(machine, checks.attention_operands(machine, (1,), 20, keys, width, 4))
        launched = machines.launches_of(machine.runner) - before
        assert not [name for name in launched if "attention_block" in name], launched


def test_queries_that_see_nothing_have_no_weights(machine, pieces):
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
