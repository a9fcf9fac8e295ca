"""Sums and rows in Triton: the bits of the CPU library where tiles, segments and lanes end, and at special values."""

import numpy as np
import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_interpreter, needs_native
from ptx.triton_cases import SPECIAL, compare
from spec import orders
from spec import softmax as spec

import pytorch_ext
from pytorch_ext import triton_path
from pytorch_ext.functional import binary_cross_entropy, cross_entropy, nll_loss, softmax

pytestmark = [needs_native, needs_interpreter]

COLUMNS = (1, 2, 63, 64, 65, 127, 4095, 4096, 4097, 10000)
NAN, INF = float("nan"), float("inf")
NONE, MEAN, SUM = 0, 1, 2  # at::Reduction


def special(*shape):
    x = 3 * torch.randn(shape)
    x.view(-1)[::17] = SPECIAL.repeat(x.numel())[: x.view(-1)[::17].numel()]
    return x


@pytest.mark.parametrize("columns", COLUMNS)
def test_softmax_has_the_cpu_s_bits_for_any_length_of_row(columns):
    for logarithm in (False, True):
        for rows in (1, 3):
            y = compare("softmax_forward", 3 * torch.randn(rows, columns), 1, logarithm)
            compare("softmax_backward", torch.randn(rows, columns), y, 1, logarithm)
        compare("softmax_forward", special(20, columns), 1, logarithm)


def test_softmax_of_special_rows_has_the_cpu_s_bits():
    x = torch.randn(9, 70)
    x[0], x[1], x[2], x[3, 5], x[4, 6] = -INF, NAN, INF, NAN, INF
    x[5], x[6], x[7], x[8] = 1e-40, -0.0, torch.linspace(-200, 0, 70), torch.linspace(-3e38, 3e38, 70)
    for logarithm in (False, True):
        y = compare("softmax_forward", x, 1, logarithm)
        compare("softmax_backward", x.flip(0), y, 1, logarithm)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
def test_softmax_of_nothing_is_nothing(shape):
    y = compare("softmax_forward", torch.empty(shape), 1, False)
    compare("softmax_backward", torch.empty(shape), y, 1, False)


def test_rows_of_more_than_4096_segments_are_summed_by_the_same_rule(monkeypatch):
    # Segments of 128 and blocks of 128 of them: three levels, where 4096 of each would take 16 million columns.
    for module, name, value in [(orders, "SEGMENT", 128), *((triton_path.kernels.rows, *c) for c in SMALL_SEGMENTS)]:
        monkeypatch.setattr(module, name, value)
    for shape in [(1, 3 * 128**2 + 77), (6, 128**2 + 130)]:  # segments of one row together; of every row one by one
        x = 3 * torch.randn(shape)
        y = triton_path.kernels.softmax.softmax_forward(x, 1, False)
        assert_same_bits(y, spec.softmax(x.numpy()), f"{shape}")


SMALL_SEGMENTS = [("SEGMENT", 128), ("SUM_SEGMENT", 128), ("BLOCK", 128**2)]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_has_the_cpu_s_bits_for_any_number_of_classes(columns, smoothing):
    x, target, weight = 3 * torch.randn(3, columns), torch.randint(columns, (3,)), torch.rand(columns)
    target[1] = -100
    for w, reduction in ((None, MEAN), (weight, SUM)):
        compare("cross_entropy_forward", x, target, w, reduction, -100, smoothing, True)
        compare("cross_entropy_forward", x, torch.rand(3, columns), w, reduction, -100, smoothing, True)
    grad = torch.randn(3)
    compare("cross_entropy_backward", grad, x, torch.rand(3, columns), weight, NONE, -100, smoothing, [True, True])


def test_special_logits_and_weights_have_the_cpu_s_bits():
    x = special(40, 37)
    x[3], x[4] = -INF, NAN
    target = torch.randint(37, (40,))
    target[::5] = -100
    for weight in (None, torch.rand(37), torch.randn(37)):
        compare("cross_entropy_forward", x, target, weight, NONE, -100, 0.0, True)
        compare("cross_entropy_backward", special(40), x, target, weight, NONE, -100, 0.1, [True, False])
        compare("nll_loss_forward", x, target, weight, NONE, -100)
        compare("nll_loss_backward", special(40), x, target, weight, NONE, -100)


@pytest.mark.parametrize("rows", [0, 1, 64, 4096, 4097, 10000])
def test_losses_sum_any_number_of_rows_as_the_cpu_does(rows):
    x, target, weight = torch.randn(rows, 3), torch.randint(3, (rows,)), torch.rand(3)
    target[1::3] = -100
    for w, reduction in ((None, MEAN), (weight, MEAN), (weight, SUM)):
        compare("cross_entropy_forward", x, target, w, reduction, -100, 0.0, True)
        compare("nll_loss_forward", x, target, w, reduction, -100)
        compare("nll_loss_backward", torch.tensor(0.7), x, target, w, reduction, -100)
    for loss in ("mse_loss", "binary_cross_entropy_with_logits"):
        compare("elementwise_loss_forward", x[:, 0], x[:, 1], None, None, loss, MEAN, [True, True])


def test_rows_that_are_all_ignored_have_the_cpu_s_bits():
    x, target = special(5, 7), torch.full((5,), 3)
    for reduction in (NONE, MEAN, SUM):
        compare("cross_entropy_forward", x, target, None, reduction, 3, 0.1, True)
        compare("nll_loss_forward", x, target, torch.rand(7), reduction, 3)


def test_special_elements_have_the_cpu_s_bits():
    x, y = special(900), torch.rand(900)
    probabilities = torch.rand(900)
    probabilities[:6] = torch.tensor([0.0, 1.0, 1e-40, 1 - 2**-24, 0.0, 1.0])
    y[:6] = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    for reduction in (NONE, SUM):
        options = (reduction, [True, True])
        compare("elementwise_loss_forward", x, x.flip(0), None, None, "mse_loss", *options)
        compare("elementwise_loss_forward", probabilities, y, y.flip(0), None, "binary_cross_entropy", *options)
        for w, p in ((None, None), (y, None), (None, y.flip(0))):
            compare("elementwise_loss_forward", x, y, w, p, "binary_cross_entropy_with_logits", *options)


def test_layouts_have_the_cpu_s_bits():
    x = torch.randn(4, 6, 5, 3)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    target = torch.randint(6, (4, 5, 3))
    for t in (x, last, x.transpose(2, 3).contiguous().transpose(2, 3)):
        compare("cross_entropy_forward", t, target, None, MEAN, -100, 0.0, True)
        compare("cross_entropy_backward", torch.tensor(0.7), t, torch.rand(x.shape), None, MEAN, -100, 0.0, [True] * 2)
        compare("softmax_forward", t, 1, False)
    compare("softmax_forward", torch.randn(6, 200)[:, 50:150], 1, True)


def test_bad_values_are_named_before_a_kernel_runs():
    x = torch.ones(4, 3)
    with pytorch_ext.backend("triton"):
        for loss in (cross_entropy, nll_loss):
            with pytest.raises(IndexError, match=rf"{loss.__name__}: expected class indices in \[0, 3\) .*, got 3"):
                loss(x, torch.tensor([0, 1, 3, 0]))
        with pytest.raises(RuntimeError, match="binary_cross_entropy: expected target between 0 and 1, got 1.5"):
            binary_cross_entropy(x, x * 1.5)


def test_a_class_out_of_range_that_a_device_cannot_report_gives_nan(monkeypatch):
    monkeypatch.setattr(triton_path.kernels.nll_loss, "check_class_indices", lambda *_: None)
    x, target = torch.randn(4, 3), torch.tensor([0, 3, -1, -100])
    for loss in (cross_entropy, nll_loss):
        leaf = x.clone().requires_grad_()
        with pytorch_ext.backend("triton"):
            values = loss(leaf, target, reduction="none")
            values.sum().backward()
        assert values.isnan().tolist() == [False, True, True, False]
        if loss is cross_entropy:
            assert leaf.grad.isnan().all(1).tolist() == [False, True, True, False]


def test_float64_is_computed_in_float64():
    x = torch.randn(3, 5000, dtype=torch.float64)
    with pytorch_ext.backend("triton"):
        y = softmax(x, 1)
    np.testing.assert_allclose(y.numpy(), torch.softmax(x, 1).numpy(), rtol=1e-14)
