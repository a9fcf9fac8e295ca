"""relu, sigmoid, tanh, gelu and silu on their own: values and derivatives on every path and instruction set."""

import functools

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import activations as spec

import pytorch_ext.functional as ours
import pytorch_ext.nn as nn

NAMES = ["relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"]
SAVES_INPUT = ("gelu", "gelu_tanh", "silu")
SIZES = [(), (0,), (1,), (7,), (3, 0), (40, 41), (70000,)]

each_name = pytest.mark.parametrize("name", NAMES)


def function(namespace, name):
    return functools.partial(namespace.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(namespace, name)


def make(*shape, dtype=torch.float32, grad=True):
    return (3 * torch.randn(shape, dtype=dtype)).requires_grad_(grad)


@each_name
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_accurate(path, name, dtype):
    for shape in SIZES:
        x = make(*shape, dtype=torch.float64)
        size = x.detach().abs()
        magnitudes = [size + 1, 3 + size**3 / 4]  # gelu_tanh's derivative has a term in z^3, which cancels
        assert_accurate(function(ours, name), function(F, name), [x], dtype, magnitudes, factor=4)


@each_name
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, name):
    for shape in SIZES:
        x, g = make(*shape), torch.randn(shape)

        def run(x=x, g=g):
            y = function(ours, name)(x)
            return [y.detach(), *torch.autograd.grad(y, x, g)]

        results = each_cpu(run)
        assert_all_same_bits(results)
        z = x.detach().numpy()
        y = spec.VALUE[name](z)
        expected = [y, spec.GRADIENT[name](g.numpy(), z if name in SAVES_INPUT else y)]
        for what, a, b in zip(("y", "dx"), next(iter(results.values())), expected, strict=True):
            assert_same_bits(a.reshape(-1), b.reshape(-1), f"{what} of {shape}")


@each_name
def test_special_values_are_where_stock_has_them(each_cpu, name):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 100.0, -100.0, 3e38, -3e38])
    results = each_cpu(lambda: [function(ours, name)(x)])
    assert_all_same_bits(results)
    y = next(iter(results.values()))[0]
    exact = function(F, name)(x.double()).float()  # in float32 stock's gelu makes NaN of infinity
    torch.testing.assert_close(y, exact, equal_nan=True, atol=1e-30, rtol=1e-6)
    if name == "relu":
        assert_same_bits(y, F.relu(x))
        assert_same_bits(y, ours.relu(x.clone(), inplace=True))


@each_name
def test_first_and_second_derivatives_match_finite_differences(path, name):
    x = make(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(function(ours, name), x)
    assert torch.autograd.gradgradcheck(function(ours, name), x)
    assert torch.autograd.gradcheck(lambda x: function(ours, name)(x).square().sum(), x)


@each_name
def test_create_graph_leaves_first_order_bits_alone(path, name):
    x = make(5, 6)
    loss = function(ours, name)(x).square().sum()
    plain = torch.autograd.grad(loss, x, retain_graph=True)
    differentiable = torch.autograd.grad(loss, x, create_graph=True)
    assert_same_bits(plain[0], differentiable[0])


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.integers(1, 20), min_size=1, max_size=3), st.sampled_from(range(3)))
def test_any_layout_gives_stock_s_layout_and_the_bits_of_a_contiguous_copy(name, shape, layout):
    x = make(*shape, grad=False)
    x = (x.transpose(0, -1), x[..., ::2], x[:1].expand(x.shape))[layout]
    leaf, copy = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
    y, y_copy = function(ours, name)(leaf), function(ours, name)(copy)
    strides = zip(x.shape, y.stride(), function(F, name)(x).stride(), strict=True)
    assert all(size == 1 or a == b for size, a, b in strides)
    assert_same_bits(y, y_copy)
    # sum()'s gradient is expanded: every stride 0
    assert_same_bits(*torch.autograd.grad(y.sum(), leaf), *torch.autograd.grad(y_copy, copy, torch.ones(y.shape)))


@each_name
def test_gradients_only_where_required(path, name):
    x = make(3, 4)
    with torch.no_grad():
        assert not function(ours, name)(x).requires_grad
    with torch.inference_mode():
        assert function(ours, name)(x).is_inference()
    y = function(ours, name)(x).sum()
    y.backward(retain_graph=True)
    first = x.grad.clone()
    y.backward()
    torch.testing.assert_close(x.grad, 2 * first)


@each_name
def test_a_saved_tensor_changed_in_place_is_noticed(path, name):
    x = make(3, 4, grad=False).requires_grad_()
    y = function(ours, name)(x)
    with torch.no_grad():
        (x if name in SAVES_INPUT else y).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_in_place_is_the_stock_operator(path, name):
    x = make(3, 4, grad=False)
    stock, copy = getattr(F, name)(x), x.clone()
    assert getattr(ours, name)(copy, inplace=True) is copy
    torch.testing.assert_close(copy, stock)
    leaf = x.clone().requires_grad_()
    getattr(ours, name)(leaf + 0, inplace=True).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(getattr(F, name)(leaf).sum(), leaf)[0])


def test_integers_take_the_stock_operator(path):
    assert_same_bits(
        ours.relu(torch.arange(-3, 3)).int().numpy().astype("f4"), F.relu(torch.arange(-3, 3)).numpy().astype("f4")
    )
    assert_same_bits(ours.sigmoid(torch.arange(3)), F.sigmoid(torch.arange(3)))


@each_name
def test_registered_operator_and_compilation(path, name):
    x = make(3, 4)
    torch.library.opcheck(operators().activation, (x, name))
    compiled = torch.compile(function(ours, name), fullgraph=True, backend="aot_eager")
    y, y_compiled = function(ours, name)(x), compiled(x)
    assert_same_bits(y, y_compiled)
    assert_same_bits(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, y_compiled)))


@each_name
def test_functional_transforms_take_the_stock_composition(path, name):
    x, call, stock = make(3, 4, grad=False), function(ours, name), function(F, name)
    torch.testing.assert_close(torch.func.vmap(call)(x), stock(x))
    torch.testing.assert_close(*(torch.func.grad(lambda x, f=f: f(x).sum())(x) for f in (call, stock)))
    ones = torch.ones_like(x)
    torch.testing.assert_close(*(torch.func.jvp(f, (x,), (ones,))[1] for f in (call, stock)))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "gelu", "silu"])
def test_what_is_no_tensor_is_named(path, name):
    error = AttributeError if name in ("sigmoid", "tanh") else TypeError  # as torch's function
    with pytest.raises(error, match=f"{name}: expected input to be a Tensor, got list"):
        getattr(ours, name)([1.0])


def test_an_unknown_approximation_is_named(path):
    with pytest.raises(RuntimeError, match="gelu: expected approximate none or tanh, got fast"):
        ours.gelu(torch.ones(3), approximate="fast")


def test_an_unknown_kind_is_named(path):
    with pytest.raises(RuntimeError, match="activation: expected activation none, relu.*got swish"):
        operators().activation(torch.ones(3), "swish")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ReLU", {}), ("ReLU", {"inplace": True}), ("Sigmoid", {}), ("Tanh", {}), ("GELU", {}), ("SiLU", {})]
    + [("GELU", {"approximate": "tanh"}), ("SiLU", {"inplace": True})],
)
def test_module_equals_the_stock_module(path, name, arguments):
    module, stock = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    assert isinstance(module, type(stock)) and repr(module) == repr(stock) and not module.state_dict()
    x = make(5, 4, grad=False)
    torch.testing.assert_close(module(x.clone()), stock(x.clone()))
