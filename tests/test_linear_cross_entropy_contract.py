"""linear_cross_entropy under compilers, transforms and autocast; its module; what it refuses."""

import pytest
import torch
import torch.nn.functional as stock
from accuracy import assert_same_bits
from agreement import error_of
from conftest import needs_native, operators
from test_linear_cross_entropy import REDUCTIONS, Case, stock_pair

import pytorch_ext
import pytorch_ext.functional as F
import pytorch_ext.nn as nn
from pytorch_ext.functional import linear_cross_entropy

# ---- compilers, transforms, autocast ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_registered_operator_and_compilation(path, soft, reduction):
    case = Case((6, 3, (5,)), soft=soft, weighted=True, reduction=reduction)
    arguments = case.x, case.W, case.target, case.bias, case.settings["weight"]
    code = {"none": 0, "mean": 1, "sum": 2}[reduction]
    torch.library.opcheck(operators().linear_cross_entropy, (*arguments, code, -100, 0.1))
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    for number in (1.0, 0.7):
        grad = torch.full(case.loss().shape, number)
        for a, b in zip(case.results(grad=grad), case.results(compiled, grad=grad), strict=True):
            assert_same_bits(a, b, case.name)


def test_functional_transforms_agree_with_torch(path):
    case = Case((4, 3, (5,)))
    x, W, target = case.x.detach(), case.W.detach(), case.target.clamp(min=0)
    for function in (linear_cross_entropy, stock_pair):
        found = [
            torch.func.grad(function, argnums=(0, 1))(x, W, target),
            torch.func.vmap(function, in_dims=(0, None, 0))(x, W, target),
            torch.func.vmap(torch.func.grad(function), in_dims=(0, None, 0))(x, W, target),
            torch.func.jvp(lambda x, function=function: function(x, W, target), (x,), (torch.ones_like(x),)),
            torch.func.hessian(lambda x, function=function: function(x, W, target))(x),
        ]
        if function is linear_cross_entropy:
            ours = found
    torch.testing.assert_close(ours, found)


def test_autocast_multiplies_in_16_bits_and_computes_the_loss_in_32(path):
    for soft in (False, True):
        case = Case((300, 8, (5,)), soft=soft, weighted=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = case.loss()
            expected = case.loss(stock_pair)
        assert loss.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=2e-3, atol=2e-3)
        found, theirs = (torch.autograd.grad(t, case.leaves) for t in (loss, expected))
        torch.testing.assert_close(found, theirs, rtol=2e-2, atol=2e-4)


# ---- the module ------------------------------------------------------------------------------------------------------


def test_the_module_trains_like_the_two_layers():
    loss = nn.LinearCrossEntropyLoss(6, 5, out_features=(2,), bias=True, ignore_index=1, weight=torch.rand(5))
    assert list(loss.state_dict()) == ["weight", "linear.weight", "linear.bias"]
    x, target = torch.randn(7, 6, requires_grad=True), torch.randint(5, (7, 2))
    ours = torch.autograd.grad(loss(x, target), [x, *loss.parameters()])
    z = loss.linear(x).reshape(7, 5, 2)
    theirs = torch.autograd.grad(F.cross_entropy(z, target, loss.weight, ignore_index=1), [x, *loss.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="torch has it from 2.13 on")
def test_torch_s_module_is_converted_and_reverted():
    model = torch.nn.ModuleDict({"loss": torch.nn.LinearCrossEntropyLoss(6, 5, bias=True, label_smoothing=0.1)})
    x, target = torch.randn(7, 6), torch.randint(5, (7,))
    before = model["loss"](x, target)
    pytorch_ext.convert(model)
    assert type(model["loss"]) is nn.LinearCrossEntropyLoss
    torch.testing.assert_close(model["loss"](x, target), before)
    pytorch_ext.revert(model)
    assert type(model["loss"]) is torch.nn.LinearCrossEntropyLoss


@needs_native
def test_verify_knows_the_magnitudes_of_its_sums():
    for settings in ({}, {"bias": True, "reduction": "sum", "label_smoothing": 0.1}, {"out_features": (2,)}):
        loss = nn.LinearCrossEntropyLoss(700, 30, **settings)
        x, target = torch.randn(300, 700), torch.randint(30, (300, *settings.get("out_features", ())))
        report = pytorch_ext.verify(torch.nn.Sequential(torch.nn.Linear(700, 700), Loss(loss, target)), x)
        assert report, str(report)
        assert {"output", "d linear_weight"} <= {row.result for row in report.rows if row.op == "linear_cross_entropy"}


class Loss(torch.nn.Module):
    def __init__(self, loss, target):
        super().__init__()
        self.loss, self.target = loss, target

    def forward(self, x):
        return self.loss(x, self.target)


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W, T = torch.ones(4, 3), torch.ones(5, 3), torch.tensor([0, 1, 2, 4])
BAD = [
    ((torch.ones(2, 4, 3), W, T), {}, RuntimeError, r"input \(N, F\)"),
    ((X, torch.ones(3), T), {}, RuntimeError, r"linear_weight \(C, F\)"),
    ((X, torch.ones(5, 2), T), {}, RuntimeError, r"input \(..., 2\)"),
    ((X, W, T), {"linear_bias": torch.ones(4)}, RuntimeError, r"linear_bias \(5,\)"),
    ((X[0], torch.ones(5, 2, 3), T), {}, RuntimeError, r"input \(N, F\) for linear_weight"),
    ((X, W, torch.rand(4, 5)), {"ignore_index": 1}, RuntimeError, "no ignore_index"),
    ((X, W, T[:3]), {}, ValueError, "target"),
    ((X, W, T.int()), {}, RuntimeError, "class indices"),
    ((X, W, torch.tensor([0, 1, 2, 5])), {}, IndexError, r"class indices in \[0, 5\)"),
    ((X, W, T), {"weight": torch.ones(4)}, RuntimeError, r"weight \(5,\)"),
    ((X, W, T), {"reduction": "average"}, ValueError, "reduction one of"),
    ((X, W, T), {"label_smoothing": 1.5}, RuntimeError, "label_smoothing between 0 and 1"),
    ((X, W.double(), T), {}, RuntimeError, "linear_weight of torch.float32"),
    (("x", W, T), {}, AttributeError, "input to be a Tensor"),
]


@pytest.mark.parametrize(("args", "settings", "error", "message"), BAD)
def test_bad_input_is_named(path, args, settings, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(*args, **settings)


@pytest.mark.skipif(not hasattr(stock, "linear_cross_entropy"), reason="torch has it from 2.13 on")
@pytest.mark.parametrize(("args", "settings", "error", "message"), BAD)
def test_bad_input_raises_what_torch_raises(args, settings, error, message):
    assert error_of(stock.linear_cross_entropy, *args, **settings) is error
