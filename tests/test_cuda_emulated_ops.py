# ruff: noqa: F811 (fixtures that another file has)
"""More CUDA kernels in the SIMT emulator: activations, dropout, sums of slices, probabilities, clipping, offsets."""

import pytest
import torch
from accuracy import assert_same_bits
from emulator import checks, machines, ops
from emulator.arguments import ACTIVATIONS, FUNCTIONS
from test_cuda_emulated import any_machine, compiled_runner, pytestmark  # noqa: F401

EVERY_SIZE = [0, 1, 3, 4, 5, 127, 1023, 1024, 1030, 5000]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(any_machine, kind):
    for count in EVERY_SIZE:
        checks.check_activation(any_machine, kind, count, special=count > 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_over_patterns_of_every_exponent(any_machine, name):
    bits = torch.arange(0, 2**32, 2**32 // 4001, dtype=torch.int64)
    checks.check_function(any_machine, name, (bits - 2**31).to(torch.int32).view(torch.float32))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1 - 2**-33, 1.0])
def test_dropout(any_machine, p):
    for count in EVERY_SIZE:
        checks.check_dropout(any_machine, count, p, key=0x123456789ABCDEF - count, special=count > 4)
    checks.check_dropout(any_machine, 10, p, key=-1)


def test_sums_of_slices_in_both_layouts(any_machine):
    for shape in [(1, 1, 1), (3, 1, 5), (2, 7, 1), (5, 0, 3), (0, 5, 3), (3, 65, 33), (2, 4096, 3), (2, 4097, 40)]:
        checks.check_sum_slices(any_machine, checks.random(*shape, special=True))
        checks.check_sum_slices(any_machine, checks.random(*shape, special=True).mT.contiguous().mT)
    checks.check_sum_slices(any_machine, checks.random(3, 40, 40)[:, ::2, 5:33])
    checks.check_sum_slices(any_machine, checks.random(3, 40, 40).mT[:, 5:33, ::2])
    checks.check_sum_slices(any_machine, checks.random(1, 30, 40).expand(4, 30, 40))
    checks.check_sum_slices(any_machine, checks.random(9, 40, 1).expand(9, 40, 7).mT)


def test_sums_of_slices_of_three_levels_of_segments(any_machine):
    x = checks.random(4096 * 4096 + 5000)
    checks.check_sum_slices(any_machine, x.view(1, -1, 1))
    checks.check_sum_slices(any_machine, x.view(1, -1, 2)[..., :1])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 9), (4096,), (3, 5000)], ids=str)
def test_binary_cross_entropy_of_probabilities(any_machine, shape, reduction):
    for weighted in (False, True):
        checks.check_elementwise_loss(any_machine, "binary_cross_entropy", shape, reduction, weighted)


@pytest.mark.parametrize("wrong", [-1e-7, 1.0000001, float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_numbers_that_are_no_probabilities_stop_the_kernel_where_the_value_is_wanted(any_machine, wrong, reduction):
    good = torch.full((300,), 0.25)
    bad = good.clone()
    bad[77] = wrong
    for x, y in [(bad, good), (good, bad)]:
        with pytest.raises(RuntimeError, match="LossTerm.*expected input and target in"):
            ops.elementwise_loss(any_machine, "binary_cross_entropy", reduction, x, y)
    ops.elementwise_loss(any_machine, "binary_cross_entropy", "mean", bad, good, value=False)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_of_class_probabilities(any_machine, reduction, smoothing, weighted):
    options = {"reduction": reduction, "smoothing": smoothing, "weighted": weighted, "probabilities": True}
    for shape in [(1, 1), (9, 10), (4100, 2), (3, 1024), (3, 1500), (2, 5000), (1, 65537), (2, 7, 5), (1, 4100, 2)]:
        checks.check_cross_entropy(any_machine, shape, **options)
    checks.check_cross_entropy(any_machine, (20, 30), special=True, **options)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nll_loss(any_machine, reduction, weighted):
    for shape in [(1, 1), (9, 10), (5000, 2), (2, 7, 5), (3, 2, 2000)]:
        checks.check_nll_loss(any_machine, shape, reduction, weighted)
    checks.check_nll_loss(any_machine, (20, 30), reduction, weighted, special=True)


def test_class_indices_out_of_range_stop_nll_loss(any_machine):
    for target in (-1, 3):
        with pytest.raises(RuntimeError, match="NllTerm.*expected class indices in"):
            ops.nll_loss(any_machine, torch.zeros(4, 3), torch.tensor([0, 1, target, 2]))


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, float("inf")])
def test_clipping_of_a_long_list_of_gradients(any_machine, max_norm):
    sizes = [1, 0, 4095, 4096, 4097, 9000, 0, *[3] * 250, 0]
    checks.check_clip_gradients(any_machine, sizes, max_norm)
    checks.check_clip_gradients(any_machine, [3, 100], max_norm, special=True)


def test_the_norm_of_a_gradient_of_three_levels_of_segments(any_machine):
    checks.check_clip_gradients(any_machine, [5, 4096 * 4096 + 5000], 0.5)


def test_the_norm_of_more_tensors_than_a_segment_holds(any_machine):
    checks.check_clip_gradients(any_machine, [1] * 4100, 0.5)


def test_the_norm_of_no_gradients_is_zero(any_machine):
    norm, clipped = ops.clip_gradients(any_machine, [], 0.5)
    assert norm.item() == 0 and clipped == []


def test_offsets_of_broadcast_batches(any_machine):
    x = torch.arange(3 * 4 * 5 * 2 * 2, dtype=torch.float32).view(3, 4, 5, 2, 2)
    for t in (x, x.transpose(0, 2), x[:, :1].expand(3, 4, 5, 2, 2), x[::2, :, 1:4], x[:, :0], x[0, 0, 0]):
        checks.check_batch_offsets(any_machine, t)


def test_rows_of_more_segments_than_a_segment_holds(any_machine):
    x = checks.random(1, 4096 * 4096 + 5000)
    y = checks.library.softmax_forward(x, 1, False)
    assert_same_bits(ops.softmax(any_machine, x), y, "softmax of 16 million columns")


def test_launches_are_counted_by_the_kernel_s_name(any_machine):
    before = machines.launches_of(any_machine.runner)
    checks.check_softmax(any_machine, (3, 12))
    forward, backward = sorted((machines.launches_of(any_machine.runner) - before).elements())
    assert "softmax_kernel" in forward and "softmax_gradient_kernel" in backward
