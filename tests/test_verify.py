"""verify: every kernel against float64 by the accuracy rule, and the culprit by its name."""

import copy

import pytest
import torch
from accuracy import PRODUCT_TERMS, SUM_TERMS, allowed_error
from conftest import on_cpu_paths
from converted import made
from torch import nn

import pytorch_ext
from pytorch_ext import functional, verification
from pytorch_ext.backends import choice

pytestmark = on_cpu_paths


@pytest.mark.parametrize("name", ["sequential", "written", "image", "attention", "multihead"])
def test_a_good_model_is_within_the_rule(name):
    model, arguments = made(name)
    weights = copy.deepcopy(model.state_dict())
    report = pytorch_ext.verify(model, arguments)
    assert report and report.first is None
    assert {row.result for row in report} > {"output"}
    assert all(row.error <= row.allowed for row in report if row.within is not None)
    assert not any(type(m).__module__ == "pytorch_ext.nn" for m in model.modules())  # a copy was converted
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


class Wrong:
    """The kernels, with an error in one layer's product."""

    def __init__(self, kernels, weight_shape, where):
        self.kernels, self.weight_shape, self.where = kernels, weight_shape, where

    def __getattr__(self, name):
        return getattr(self.kernels, name)

    def linear(self, input, weight, bias, activation):
        if weight.shape != self.weight_shape:
            return self.kernels.linear(input, weight, bias, activation)
        if self.where == "output":
            return self.kernels.linear(input, weight, bias, activation) * (1 + 1e-4)
        if self.where == "d weight":
            weight = weight + 1e-3 * (weight - weight.detach())
        if self.where == "d bias":
            bias = bias + 1e-3 * (bias - bias.detach())
        if self.where == "d input":
            input = input + 1e-3 * (input - input.detach())
        return self.kernels.linear(input, weight, bias, activation)


@pytest.mark.parametrize("where", ["output", "d input", "d weight", "d bias"])
def test_the_first_layer_beyond_the_rule_is_named(monkeypatch, where):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    monkeypatch.setattr(choice, "kernels", Wrong(choice.kernels, (8, 9), where))
    monkeypatch.setattr(choice, "name", "auto")
    report = pytorch_ext.verify(model, torch.randn(16, 6))
    assert not report
    assert (report.first.layer, report.first.op, report.first.result) == ("2", "linear, relu", where)
    assert f"beyond the accuracy rule: 2, linear, relu, {where}" in str(report)


def test_whole_model_figures_stand_beside_stock_s():
    model, x = nn.Sequential(nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 4)), torch.randn(64, 300)
    rows = {row.result: row for row in pytorch_ext.verify(model, x) if row.op == "whole model"}
    assert rows.keys() == {"output", *(f"d {name}" for name, _ in model.named_parameters())}
    exact = copy.deepcopy(model).double()(x.double())
    assert rows["output"].stock_error == pytest.approx((model(x).double() - exact).abs().max().item(), rel=0.5)
    assert all(row.error < 1e-4 for row in rows.values())


def test_a_layer_in_use_twice_and_a_dict_of_arguments():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, *, scale):
            return self.fc(torch.relu(self.fc(x))) * scale

    report = pytorch_ext.verify(Twice(), {"x": torch.randn(3, 4), "scale": 2.0})
    calls = [row.op for row in report if row.layer == "fc" and row.result == "output"]
    assert report and calls == ["linear, relu", "linear"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_have_the_same_rule(dtype):
    model = nn.Sequential(nn.Linear(40, 20), nn.GELU(), nn.Linear(20, 4), nn.LogSoftmax(1)).to(dtype)
    report = pytorch_ext.verify(model, torch.randn(8, 40, dtype=dtype))
    assert report and {row.dtype for row in report} == {str(dtype).removeprefix("torch.")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_call_under_autocast_is_verified_under_it(dtype):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(40, 20), nn.GELU(), nn.Linear(20, 8), nn.Softmax(-1))
            self.loss, self.plain = nn.CrossEntropyLoss(), nn.Linear(8, 3)

        def forward(self, x):
            z = self.body(x)
            with torch.autocast("cpu", enabled=False):
                z = self.plain(z.float())
            return self.loss(z @ z.mT, torch.arange(len(x)))

    with torch.autocast("cpu", dtype=dtype):
        report = pytorch_ext.verify(Net(), torch.randn(6, 40))
    assert report, report.first
    dtypes = {(row.layer, row.op): row.dtype for row in report if row.result == "output"}
    low = str(dtype).removeprefix("torch.")
    assert dtypes["body.0", "linear, gelu"] == dtypes["", "matmul"] == low
    assert dtypes["plain", "linear"] == dtypes["loss", "cross_entropy"] == "float32"


@pytest.mark.parametrize("function", [pytorch_ext.verify, pytorch_ext.explain])
def test_random_numbers_go_on_as_if_nobody_had_looked(function):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    before = torch.get_rng_state()
    function(model, torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_kernels_there_is_nothing_to_verify():
    with pytorch_ext.backend("stock"):
        report = pytorch_ext.verify(nn.Linear(3, 4), torch.randn(2, 3))
    assert report.summary() == "no kernel of this package ran" and {row.op for row in report} == {"whole model"}


def test_every_op_can_be_verified():
    activations = {"relu", "sigmoid", "tanh", "gelu", "silu"}  # one kernel
    unverified = {"dropout"}  # a product with a constant
    assert set(functional.__all__) - activations - unverified <= set(verification.FUNCTIONS)


def test_random_models_are_refused_and_dropout_modules_do_not_drop():
    assert pytorch_ext.verify(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(3, 4))

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="^verify: expected a model without random numbers, got results that differ"):
        pytorch_ext.verify(Noisy(), torch.randn(3, 4))


def test_lazy_models_are_verified_and_models_without_values_refused():
    assert pytorch_ext.verify(nn.Sequential(nn.LazyLinear(4), nn.ReLU()), torch.randn(3, 5))
    with pytest.raises(ValueError, match="^verify: expected a model with values, got parameters on meta$"):
        pytorch_ext.verify(nn.Linear(3, 4, device="meta"), torch.randn(2, 3, device="meta"))


@pytest.mark.parametrize("function", ["verify", "explain"])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=f"^{function}: expected a torch.nn.Module, got list$"):
        getattr(pytorch_ext, function)([], torch.ones(1))


def test_the_rule_is_the_larger_of_its_two_bounds():
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    u = 2.0**-24
    exact = allowed_error(reference, reference.float(), torch.float32)
    torch.testing.assert_close(exact, SUM_TERMS * u * reference.abs(), rtol=1e-12, atol=1e-37)
    off = allowed_error(reference, reference.float() + 1.0, torch.float32)
    torch.testing.assert_close(off, torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
    terms = allowed_error(reference, reference.float(), torch.float32, torch.tensor(8.0).double(), PRODUCT_TERMS)
    torch.testing.assert_close(terms, torch.full((2,), 64 * u * 8, dtype=torch.float64), rtol=1e-12, atol=1e-37)
    half = allowed_error(reference, reference.bfloat16(), torch.bfloat16)
    torch.testing.assert_close(half, (SUM_TERMS * u + 2.0**-9 * 2) * reference.abs(), rtol=0.51, atol=0)
