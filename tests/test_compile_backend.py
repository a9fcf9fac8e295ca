"""torch.compile(model, backend="pytorch_ext"): the graph runs on our kernels, and goes on to another backend."""

import copy
import importlib.metadata
import sys

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from converted import made, output_of
from torch import nn
from torch._dynamo.backends.common import aot_module_simplified
from torch._functorch.aot_autograd import make_boxed_func

import pytorch_ext
from pytorch_ext import compilation, functional, native

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, then="aot_eager", **options):
    return torch.compile(model, backend="pytorch_ext", options={"then": then, **options})


def results(model, call, arguments):
    """(output, every gradient) of one training step."""
    model.zero_grad()
    output = output_of(call, arguments)
    output.square().mean().backward()
    return [output.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]


@pytest.mark.parametrize(
    ("name", "then"),
    [
        *((name, "aot_eager") for name in ("sequential", "branches", "image", "decoder", "multihead")),
        ("written", "eager"),
    ],
)
def test_a_compiled_model_trains_and_infers_as_stock_does(name, then):
    model, arguments = made(name)
    stock = copy.deepcopy(model)
    call = compiled(model, then)
    torch.testing.assert_close(results(model, call, arguments), results(stock, stock, arguments), rtol=1e-4, atol=1e-5)
    model.eval(), stock.eval()
    with torch.inference_mode():
        torch.testing.assert_close(output_of(call, arguments), output_of(stock, arguments))


@pytest.mark.parametrize("then", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["sequential", "written", "attention"])
def test_the_compiled_graph_has_the_bits_of_the_converted_model(name, then):
    model, arguments = made(name)
    converted = copy.deepcopy(model)
    pytorch_ext.convert(converted)
    found = results(model, compiled(model, then), arguments), results(converted, converted, arguments)
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


def captured(model, *arguments):
    """The nodes of the changed graph: (what is called, its activation)."""
    nodes = []

    def backend(graph_module, example_inputs):
        compilation.exchange(graph_module)
        graph = graph_module.graph
        nodes.extend((n.target, n.kwargs.get("activation")) for n in graph.nodes if n.op.startswith("call"))
        return graph_module

    torch.compile(model, backend=backend)(*arguments)
    return nodes


def test_every_activation_that_only_follows_its_product_is_in_it():
    model, (x,) = made("written")
    nodes = captured(model, x)
    fused = [activation for target, activation in nodes if target is functional.linear]
    assert fused == ["relu", "tanh", "sigmoid", "relu", None, "silu", *["gelu_tanh"] * 3, None, None]
    assert [target for target, _ in nodes].count(functional.relu) == 2


LABELS, PROBABILITIES = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6, 4)
FUNCTIONS = {
    "cross_entropy": lambda x: F.cross_entropy(x, LABELS),
    "nll_loss": lambda x: F.nll_loss(x, LABELS),
    "mse_loss": lambda x: F.mse_loss(x, PROBABILITIES),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), PROBABILITIES),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, PROBABILITIES),
    "dropout": lambda x: F.dropout(x, 0.5).mean(),
    "softmax": lambda x: F.softmax(x, 1).square().mean(),
    "log_softmax": lambda x: F.log_softmax(x, 1).mean(),
    "matmul": lambda x: torch.matmul(x, x.t()).mean(),
    "silu": lambda x: F.silu(x).mean(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_compiled_ahead_of_time_has_our_operators_forward_and_backward(name):
    graphs = []

    def keep(graph_module, example_inputs):
        graphs.append({str(n.target) for n in graph_module.graph.nodes if n.op == "call_function"})
        return make_boxed_func(graph_module.forward)

    def backend(graph_module, example_inputs):
        compilation.exchange(graph_module)
        return aot_module_simplified(graph_module, example_inputs, fw_compiler=keep)

    x = torch.randn(6, 4)
    results = []
    for function in (torch.compile(FUNCTIONS[name], backend=backend), FUNCTIONS[name]):
        argument = x.clone().requires_grad_()
        loss = function(argument)
        loss.backward()
        results.append((loss.detach(), argument.grad))
    if name != "dropout":
        torch.testing.assert_close(*results)
    for targets in graphs:
        assert any(target.startswith("pytorch_ext.") for target in targets)
    assert len(graphs) == 2


def test_functions_methods_and_operators_become_ours():
    def function(x, y, labels):
        z = (x @ y).softmax(-1) + torch.log_softmax(x, 1) + F.dropout(x, 0.0)
        return F.cross_entropy(torch.matmul(z, y).sigmoid(), labels)

    targets = [target for target, _ in captured(function, torch.randn(4, 4), torch.randn(4, 4), torch.arange(4))]
    for name in ("matmul", "sigmoid", "cross_entropy", "dropout"):
        assert getattr(functional, name) in targets
    assert not {torch.softmax, torch.log_softmax, torch.matmul, F.cross_entropy} & set(targets)


def test_arguments_that_ours_do_not_take_stay_with_torch():
    out = torch.empty(3, 3)
    targets = [target for target, _ in captured(lambda x: torch.matmul(x, x, out=out), torch.randn(3, 3))]
    assert functional.matmul not in targets


def test_a_converted_model_may_be_compiled_too():
    model, arguments = made("sequential")
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    expected = results(model, model, arguments)
    for a, b in zip(results(model, compiled(model), arguments), expected, strict=True):
        assert_same_bits(a, b)
    torch.testing.assert_close(expected, results(stock, stock, arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sequential", "written", "attention", "encoder"])
def test_a_converted_model_is_one_graph_to_any_compiler(name):
    model, arguments = made(name)
    pytorch_ext.convert(model)
    expected = results(model, model, arguments)
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(model, call, arguments), expected, rtol=1e-4, atol=1e-5)


def test_other_batch_sizes_are_not_compiled_one_by_one():
    model, _ = made("written")
    pytorch_ext.convert(model)
    compilations = []

    def backend(graph_module, example_inputs):
        compilations.append(1)
        return graph_module

    call = torch.compile(model, backend=backend)
    for rows in range(2, 9):
        x = torch.randn(rows, 8)
        assert_same_bits(call(x), model(x))
    assert len(compilations) == 2  # the first size, then all others


def test_inductor_takes_the_graph_by_default():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    converted = copy.deepcopy(model)
    pytorch_ext.convert(converted)
    call = torch.compile(model, backend="pytorch_ext", fullgraph=True)
    with torch.no_grad():
        assert_same_bits(call(x), converted(x))


def test_an_option_that_no_backend_takes_is_refused():
    with pytest.raises(Exception, match="torch.compile: expected options and mode only with inductor, got options"):
        compiled(nn.Linear(2, 2), "eager", other=1)(torch.ones(1, 2))


def test_the_name_is_known_where_torch_has_yet_to_look_for_backends(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.backends.registry")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    compilation.make_known()
    found = importlib.metadata.entry_points(group="torch_dynamo_backends")["pytorch_ext"]
    assert found.load() is compilation.compile_graph
    assert importlib.metadata.version("pytorch_ext") == pytorch_ext.__version__


def test_the_name_is_known_where_torch_has_looked_already(monkeypatch):
    from torch._dynamo.backends import registry

    torch._dynamo.list_backends()
    for name in ("_BACKENDS", "_COMPILER_FNS"):
        names = getattr(registry, name)
        monkeypatch.setattr(registry, name, {k: v for k, v in names.items() if k != "pytorch_ext"})
    assert "pytorch_ext" not in torch._dynamo.list_backends()
    compilation.make_known()
    assert torch._dynamo.lookup_backend("pytorch_ext") is compilation.compile_graph
