"""convert and revert: what is replaced and fused, and that the model stays the same function and the same objects."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from converted import MODELS, Head, Written, made, output_of, snapshot
from torch import nn

import pytorch_ext
from pytorch_ext import functional


def trained(model, arguments, steps=3):
    """Weights and losses after a few steps with torch's SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = output_of(model, arguments).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_trains_as_before_and_revert_gives_it_back(name):
    model, arguments = made(name)
    stock, before = copy.deepcopy(model), snapshot(model)
    report = pytorch_ext.convert(model)
    assert report.paths("replaced") or report.paths("fused")
    assert [key for key in model.state_dict()] == before[4]
    assert isinstance(model, type(stock)) and type(model).__name__ == type(stock).__name__
    for mode in (True, False):
        model.train(mode), stock.train(mode)
        torch.testing.assert_close(output_of(model, arguments), output_of(stock, arguments))
    model.train(), stock.train()
    ours, theirs = trained(model, arguments), trained(stock, arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    pytorch_ext.revert(model)
    if name == "branches":
        stock.calls = model.calls
    assert snapshot(model) == before
    model.load_state_dict(stock.state_dict())
    assert_same_bits(output_of(model, arguments), output_of(stock, arguments))


def by_hand(model, x):
    """``Written.forward`` in this package's functions, one at a time."""
    f = functional
    x = f.relu(f.linear(x, model.a.weight, model.a.bias))
    x = f.tanh(f.linear(x, model.b.weight, model.b.bias))
    x = f.sigmoid(f.linear(x, model.c.weight, model.c.bias))
    x = f.relu(f.linear(x, model.d.weight, model.d.bias))
    before = f.linear(x, model.e.weight, model.e.bias)
    x = f.silu(f.linear(f.relu(before), model.f.weight, model.f.bias)) + before
    for layer in model.more:
        x = f.gelu(f.linear(x, layer.weight, layer.bias), approximate="tanh")
    x = f.gelu(f.linear(x, model.g.weight, model.g.bias), approximate="tanh")
    kept = f.linear(x, model.h.weight, model.h.bias)
    x = f.relu(kept) + kept
    return f.log_softmax(f.linear(x, model.i.weight, model.i.bias), -1)


class ByHand(Written):
    def forward(self, x):
        return by_hand(self, x)


def test_training_a_converted_model_is_training_with_our_functions_bit_for_bit():
    model = Written()
    twin = ByHand()
    twin.load_state_dict(model.state_dict())
    pytorch_ext.convert(model)
    x = torch.randn(300, 8)
    for ours, functions in zip(trained(model, (x,), 5), trained(twin, (x,), 5), strict=True):
        for a, b in zip(ours, functions, strict=True):
            assert_same_bits(a, b)


def test_an_activation_joins_its_product_in_every_way_a_forward_may_call_it(monkeypatch):
    model = Written()
    report = pytorch_ext.convert(model)
    assert report.paths("fused") == list("abcdfg")
    assert report.paths("replaced") == ["e", "h", "i", "relu", "gelu", "more.0", "more.1"]
    calls, stock = [], functional.linear

    def linear(*arguments, activation=None):
        calls.append(activation)
        return stock(*arguments, activation=activation)

    monkeypatch.setattr(functional, "linear", linear)
    model(torch.randn(2, 8))
    assert calls == ["relu", "tanh", "sigmoid", "relu", None, "silu", "gelu_tanh", "gelu_tanh", "gelu_tanh", None, None]


def test_parts_of_a_converted_model_keep_their_own_meaning():
    model = Written()
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model.a(x), stock.a(x))
    torch.testing.assert_close(model.relu(x.clone()), x.relu())
    sequential = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    pytorch_ext.convert(sequential)
    torch.testing.assert_close(sequential[0](x), F.linear(x, sequential[0].weight, sequential[0].bias))
    torch.testing.assert_close(sequential[:2](x), sequential[0](x).relu())
    sequential[1] = nn.Tanh()
    torch.testing.assert_close(sequential(x), sequential[2](sequential[0](x).tanh()))


def test_control_flow_and_attributes_stay_alive():
    model, (x,) = made("branches")
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    for sign in (x.abs(), -x.abs()):
        torch.testing.assert_close(model(sign), stock(sign))
    model.scale = stock.scale = 3.0
    model.eval(), stock.eval()
    torch.testing.assert_close(model(x), stock(x))
    assert model.calls == 3


@pytest.mark.parametrize("name", MODELS)
def test_pickle_and_deepcopy_keep_a_converted_model(name):
    model, arguments = made(name)
    pytorch_ext.convert(model)
    expected = output_of(model, arguments)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.copy(model),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert_same_bits(output_of(other, arguments), expected)
    before = [type(m) for m in pytorch_ext.revert(copies[1]) and copies[1].modules()]
    assert all(not cls.__module__.startswith("pytorch_ext") for cls in before)
    assert_same_bits(output_of(model, arguments), expected)  # a copy reverted, the model is not


def test_an_optimiser_made_before_goes_on_training_the_same_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x = torch.randn(8, 3)
    model(x).sum().backward()
    optimizer.step()
    pytorch_ext.convert(model)
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_hook_sees_the_module_it_watches(kind, place):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    x, seen = torch.randn(5, 3, requires_grad=True), {}
    for name, m in (("ours", model), ("stock", stock)):

        def hook(module, *tensors, name=name):
            groups = [group if isinstance(group, tuple) else (group,) for group in tensors]
            seen[name] = [t.detach().clone() for group in groups for t in group if t is not None]

        handle = getattr(m[place], f"register_{kind}_hook")(hook)
        m(x).sum().backward()
        handle.remove()
    assert len(seen["ours"]) == len(seen["stock"]) > 0
    torch.testing.assert_close(seen["ours"], seen["stock"])


def test_a_global_hook_sees_every_module():
    model = pytorch_ext.nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    pytorch_ext.convert(model)
    seen = []

    def hook(module, arguments, output):
        seen.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        model(torch.randn(2, 3))
    finally:
        handle.remove()
    assert seen == ["Linear", "ReLU", "Sequential"]


def test_hooks_of_the_state_dict_stay():
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].register_state_dict_post_hook(lambda module, state, prefix, meta: state.update(extra=torch.ones(1)))
    pytorch_ext.convert(model)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "extra"]


def test_losses_and_activations_are_replaced_too():
    model = nn.ModuleDict(
        {
            name: getattr(nn, name)()
            for name in ("CrossEntropyLoss", "MSELoss", "BCELoss", "BCEWithLogitsLoss", "NLLLoss", "Dropout")
        }
        | {"Softmax": nn.Softmax(1), "LogSoftmax": nn.LogSoftmax(1), "SiLU": nn.SiLU(), "Tanh": nn.Tanh()}
    )
    report = pytorch_ext.convert(model)
    assert report.paths("replaced") == list(model)
    assert all(type(module).__module__ == "pytorch_ext.nn" for module in model.values())
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    pytorch_ext.convert(loss)
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    assert_same_bits(loss(logits, target), functional.cross_entropy(logits, target, label_smoothing=0.1))


def test_a_subclass_of_sequential_fuses_and_keeps_its_class():
    model = Head(4, 2)
    report = pytorch_ext.convert(model)
    assert report.paths("fused") == ["0"] and isinstance(model, Head) and type(model) is not Head
    pytorch_ext.revert(model)
    assert type(model) is Head


def test_the_report_prints_with_and_without_rich():
    report = pytorch_ext.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)))
    text = str(report)
    assert "with the ReLU after it" in text and "this package has no kernel for it" in text
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=120)
    console.print(report)
    assert "with the ReLU after it" in console.file.getvalue()
