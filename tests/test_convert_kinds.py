"""convert and revert of shared, tied, parametrized and lazy modules, of deep models and of random sequences."""

import copy
import threading
import time

import pytest
import torch
from accuracy import assert_same_bits
from converted import Written, made, output_of, reason, snapshot
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pytorch_ext


def test_shared_modules_are_converted_once_and_named():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())
    stock = copy.deepcopy(model)
    report = pytorch_ext.convert(model)
    assert reason(report, "2") == ("shared", "the same module as 0")
    assert model[0] is model[2] is layer
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), stock(x))


def test_tied_weights_stay_tied():
    model, arguments = made("tied")
    pytorch_ext.convert(model)
    assert model.output.weight is model.embedding.weight
    output_of(model, arguments).sum().backward()
    assert model.embedding.weight.grad is model.output.weight.grad is not None


def test_parametrized_layers_keep_their_parametrization():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    stock, keys, cls = copy.deepcopy(model), list(model.state_dict()), type(model[0])
    report = pytorch_ext.convert(model)
    assert reason(report, "0")[0] == "fused" and isinstance(model[0], pytorch_ext.nn.Linear)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), stock(x))
    model(x).sum().backward(), stock(x).sum().backward()
    torch.testing.assert_close(
        model[0].parametrizations.weight.original0.grad, stock[0].parametrizations.weight.original0.grad
    )
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(copy.deepcopy(model)(x), stock(x))
    pytorch_ext.revert(model)
    assert type(model[0]) is cls and type(stock[0]) is not pytorch_ext.nn.Linear


def test_parametrizations_may_come_and_go_on_a_converted_layer():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).mT

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    pytorch_ext.convert(model)
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    x = torch.randn(3, 4)
    expected = (x @ model[0].weight.t() + model[0].bias).relu()
    torch.testing.assert_close(model(x), expected)
    pytorch_ext.revert(model)
    assert isinstance(model[0], nn.Linear) and not isinstance(model[0], pytorch_ext.nn.Linear)
    assert_same_bits(model(x), nn.functional.linear(x, model[0].weight, model[0].bias).relu())
    pytorch_ext.convert(model)
    parametrize.remove_parametrizations(model[0], "weight")
    pytorch_ext.revert(model)
    assert type(model[0]) is nn.Linear


def test_lazy_layers_become_ours_when_they_meet_data():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    pytorch_ext.convert(model)
    x = torch.randn(5, 3)
    out = model(x)
    assert [type(m).__module__ for m in model] == ["pytorch_ext.nn"] * 3 and type(model[0]) is pytorch_ext.nn.Linear
    torch.testing.assert_close(model(x), out)
    pytorch_ext.revert(model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(model(x), out)
    unused = nn.Sequential(nn.LazyLinear(4))
    pytorch_ext.convert(unused)
    pytorch_ext.revert(unused)
    assert type(unused[0]) is nn.LazyLinear


class Products(nn.Module):
    """Products as libraries write them."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], 6)
        scaled = torch.addmm(self.bias, x[0], self.weight, beta=0.5, alpha=2)
        matrix = torch.addmm(torch.ones(x.shape[1], 6), x[0], self.weight)
        return torch.bmm(y, y.transpose(1, 2)).sum() + scaled.sum() + matrix.sum()


def test_addmm_and_bmm_run_as_our_products():
    model = Products()
    stock = copy.deepcopy(model)
    report = pytorch_ext.convert(model)
    assert report.paths("rewritten") == [""]
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(model(x), stock(x))
    model(x).backward(), stock(x).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in stock.parameters()])
    if pytorch_ext.native.library is not None:
        ours = [row.op for row in pytorch_ext.explain(model, x, backward=False) if row.path == "native-cpu"]
        assert ours == ["linear", "matmul"]
    for wrong in (torch.randn(2, 5, 3), torch.randn(5, 4)):
        raised = []
        for m in (model, stock):
            with pytest.raises(Exception) as caught:  # noqa: B017 (whatever torch raises)
                m(wrong)
            raised.append(caught.type)
        assert raised[0] is raised[1]


def test_data_types_devices_and_modes_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5)).double().eval()
    pytorch_ext.convert(model)
    assert model[0].weight.dtype == torch.float64 and not any(m.training for m in model.modules())
    model.to(torch.bfloat16).train()
    assert model(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    pytorch_ext.convert(empty)
    assert empty(torch.ones(2, 3, device="meta")).is_meta


@pytest.mark.parametrize("deep", ["transformer", "perceptron"])
def test_converting_a_deep_model_takes_less_than_a_second(deep):
    if deep == "transformer":
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 12)
    else:
        model = nn.Sequential(*[part for _ in range(50) for part in (nn.Linear(32, 32), nn.ReLU())])
    start = time.process_time()
    report = pytorch_ext.convert(model)
    assert time.process_time() - start < 1
    assert len(report.paths("fused")) == (12 if deep == "transformer" else 50)


def test_threads_may_use_a_model_while_another_is_converted():
    model = Written()
    x = torch.randn(16, 8)
    expected, wrong = model(x), []

    def use():
        for _ in range(50):
            if not torch.allclose(model(x), expected, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        pytorch_ext.convert(model)
        pytorch_ext.revert(model)
    for thread in threads:
        thread.join()
    assert not wrong


LAYERS = st.sampled_from(
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.Linear(4, 4, bias=False),
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        nn.Tanh,
        nn.Sigmoid,
        lambda: nn.GELU("tanh"),
        nn.SiLU,
        nn.Identity,
        nn.Flatten,
        lambda: nn.BatchNorm1d(4),
        lambda: nn.LayerNorm(4),
        lambda: nn.Softmax(1),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        lambda: nn.Linear(4, 4).requires_grad_(False),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=8), st.booleans())
def test_any_sequence_stays_its_function_and_comes_back_exactly(makers, training):
    torch.manual_seed(0)
    model = nn.Sequential(*[make() for make in makers]).train(training)
    stock, before, x = copy.deepcopy(model), snapshot(model), torch.randn(6, 4)
    pytorch_ext.convert(model)
    results = []
    for m in (stock, model):
        argument = x.clone().requires_grad_()
        out = m(argument * 1)
        try:
            out.square().sum().backward()
        except RuntimeError:  # torch's own: an activation in place overwrites what the one before it has saved
            assume(m is not stock)
            raise
        results.append([out.detach(), argument.grad, *[p.grad for p in m.parameters() if p.requires_grad]])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    pytorch_ext.revert(model)
    assert snapshot(model) == before
    torch.testing.assert_close(model.state_dict(), stock.state_dict())
