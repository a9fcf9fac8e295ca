"""linear: forward, gradients, second derivatives, on every path, instruction set and thread count."""

import contextlib
from pathlib import Path

import pytest
import torch
from accuracy import DTYPES, PRODUCT_TERMS, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import linear as spec

import pytorch_ext.nn as nn
from pytorch_ext import calls
from pytorch_ext.backends import choice
from pytorch_ext.functional import linear, matmul
from pytorch_ext.ops.linear import ACTIVATIONS

SHAPES = [
    (1, 1, 1),
    (3, 5, 2),
    (64, 128, 784),
    (300, 10, 128),
    (7, 33, 257),
    (2, 17, 1000),
    (0, 4, 3),
    (3, 4, 0),
    (3, 0, 4),
]


def shapes():
    """Without the large ones where a product is interpreted."""
    return [s for s in SHAPES if choice.name != "triton" or s[0] * s[1] * s[2] < 1e5]


def make(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def stock(activation):
    return lambda x, w, b=None: ACTIVATIONS[activation](torch.nn.functional.linear(x, w, b))


def ours(activation):
    return lambda x, w, b=None: linear(x, w, b, activation=activation)


def product_magnitudes(x, w, b):
    """Sums of |terms| of the output and of the three gradients, for |output gradient| about 1."""
    x, w, b = x.detach().abs(), w.detach().abs(), b.detach().abs()
    grad = torch.full((*x.shape[:-1], w.shape[0]), 3.0, dtype=x.dtype)
    return [x @ w.T + b, grad @ w, grad.T @ x, grad.sum(0)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_results_are_accurate(path, activation, dtype):
    for m, n, k in shapes():
        x, w, b = make(m, k), make(n, k), make(n)
        magnitudes = [2 * m for m in product_magnitudes(x, w, b)]
        assert_accurate(ours(activation), stock(activation), [x, w, b], dtype, magnitudes, PRODUCT_TERMS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, activation):
    for m, n, k in [(5, 7, 3), (3, 33, 257), (130, 4, 20), (1, 2, 700)]:
        x, w, b, g = (make(*s, dtype=torch.float32) for s in [(m, k), (n, k), (n,), (m, n)])

        def run(x=x, w=w, b=b, g=g):
            y = linear(x, w, b, activation=activation)
            return [y.detach(), *torch.autograd.grad(y, (x, w, b), g)]

        results = each_cpu(run)
        assert_all_same_bits(results)
        arrays = [t.detach().numpy() for t in (x, w, b, g)]
        y, z = spec.forward(*arrays[:3], activation)
        saved = z if activation in ("gelu", "gelu_tanh", "silu") else y
        expected = [y, *spec.backward(arrays[3], arrays[0], arrays[1], saved, activation)]
        for name, a, b_ in zip(("y", "dx", "dweight", "dbias"), next(iter(results.values())), expected, strict=True):
            assert_same_bits(a, b_, f"{name} of {(m, n, k)}")


def test_special_values_have_the_same_bits_everywhere(each_cpu):
    x = make(40, 300, dtype=torch.float32, grad=False)
    x[0, 0], x[1, 1], x[2, 2], x[3], x[4] = float("nan"), float("inf"), float("-inf"), 1e-40, -0.0
    w = make(20, 300, dtype=torch.float32, grad=False)
    assert_all_same_bits(each_cpu(lambda: [linear(x, w, activation=a) for a in ACTIVATIONS]))


def test_a_row_does_not_depend_on_its_batch(path):
    x, w = make(64, 784, dtype=torch.float32, grad=False), make(128, 784, dtype=torch.float32, grad=False)
    whole = linear(x, w)
    for m in (1, 2, 3, 5, 31):
        assert_same_bits(linear(x[:m], w), whole[:m])


def test_flush_to_zero_of_the_caller_changes_nothing(path):
    x = torch.full((4, 8), 1e-20)
    expected = linear(x, x)
    assert (expected > 0).all() and (expected < torch.finfo(torch.float32).tiny).all()
    try:
        assert torch.set_flush_denormal(True)
        result = linear(x, x)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_derivatives_match_finite_differences(path, activation):
    inputs = (make(4, 3), make(5, 3), make(5))
    assert torch.autograd.gradcheck(ours(activation), inputs)
    assert torch.autograd.gradgradcheck(ours(activation), inputs)
    assert torch.autograd.gradcheck(lambda *t: linear(*t, activation=activation).sum(), inputs)


def test_second_derivatives_of_any_subset_match_finite_differences(path):
    x, w, b = make(4, 3), make(5, 3), make(5)
    assert torch.autograd.gradgradcheck(ours("tanh"), (x, w))
    assert torch.autograd.gradgradcheck(lambda x: ours("gelu")(x, w.detach(), b.detach()), x)
    assert torch.autograd.gradgradcheck(lambda w: ours("relu")(x.detach(), w), w)


def test_create_graph_leaves_first_order_bits_alone(path):
    for activation in ACTIVATIONS:
        x, w, b = make(5, 6, dtype=torch.float32), make(4, 6, dtype=torch.float32), make(4, dtype=torch.float32)
        loss = linear(x, w, b, activation=activation).square().sum()
        plain = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
        differentiable = torch.autograd.grad(loss, (x, w, b), create_graph=True)
        for a, c in zip(plain, differentiable, strict=True):
            assert_same_bits(a, c, activation)


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 600), st.booleans(), st.booleans(), st.booleans())
def test_any_shape_and_layout_gives_the_bits_of_contiguous_copies(m, n, k, x_transposed, w_transposed, bias):
    x = make(k, m, dtype=torch.float32, grad=False).T if x_transposed else make(m, k, dtype=torch.float32, grad=False)
    w = make(k, n, dtype=torch.float32, grad=False).T if w_transposed else make(n, k, dtype=torch.float32, grad=False)
    b = make(2 * n, dtype=torch.float32, grad=False)[::2] if bias else None
    leaves = [t.requires_grad_() for t in (x, w)]
    copies = [t.detach().contiguous().requires_grad_() for t in leaves]
    y, y_copy = linear(*leaves, b), linear(*copies, None if b is None else b.contiguous())
    assert_same_bits(y, y_copy)
    # sum()'s gradient is expanded: every stride 0
    for a, c in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(y_copy.sum(), copies), strict=True):
        assert_same_bits(a, c)


def test_leading_dimensions_are_rows(path):
    x, w = make(2, 3, 4, 5), make(6, 5)
    assert linear(x, w).shape == (2, 3, 4, 6)
    torch.testing.assert_close(linear(x, w), torch.nn.functional.linear(x, w))
    torch.testing.assert_close(linear(x.detach()[0, 0, 0], w), torch.nn.functional.linear(x[0, 0, 0], w))
    transposed = x.transpose(0, 2)
    torch.testing.assert_close(linear(transposed, w), torch.nn.functional.linear(transposed, w))


def test_gradients_only_where_required(path):
    for wanted in [(True, False, False), (False, True, False), (False, False, True)]:
        tensors = [make(*s, grad=g) for s, g in zip([(3, 4), (5, 4), (5,)], wanted, strict=True)]
        linear(*tensors, activation="relu").sum().backward()
        assert [t.grad is not None for t in tensors] == list(wanted)
    with torch.no_grad():
        assert not linear(make(3, 4), make(5, 4)).requires_grad
    with torch.inference_mode():
        assert linear(make(3, 4), make(5, 4)).is_inference()


def test_an_input_changed_in_place_is_noticed(path):
    x, w = make(3, 4, grad=False), make(5, 4)
    y = linear(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_accumulates(path):
    x, w = make(3, 4), make(5, 4)
    loss = linear(x, w, activation="tanh").sum()
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * first)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_registered_operator_and_compilation(path, activation):
    inputs = tuple(t.float().detach().requires_grad_() for t in (make(3, 4), make(5, 4), make(5)))
    torch.library.opcheck(operators().linear, (*inputs, activation))
    compiled = torch.compile(ours(activation), fullgraph=True, backend="aot_eager")
    y, y_compiled = ours(activation)(*inputs), compiled(*inputs)
    assert_same_bits(y, y_compiled)
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), inputs) for t in (y, y_compiled)), strict=True):
        assert_same_bits(a, b)


def test_functional_transforms_take_the_stock_composition(path):
    x, w = make(3, 4, grad=False), make(5, 4, grad=False)

    def loss(w):
        return linear(x, w, activation="tanh").sum()

    torch.testing.assert_close(torch.func.grad(loss)(w), torch.func.grad(lambda w: (x @ w.T).tanh().sum())(w))
    batched = torch.func.vmap(lambda row: linear(row, w))(x)
    torch.testing.assert_close(batched, x @ w.T)
    _, tangent = torch.func.jvp(lambda x: linear(x, w), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones_like(x) @ w.T)


def test_autocast_and_torch_s_precision_flags_are_obeyed(path):
    x, w, b = make(3, 4).float(), make(5, 4).float(), make(5).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w, b, activation="relu").dtype == torch.bfloat16
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert choice.kernels.linear(x, w, b, "none") is None
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            lambda: (torch.ones(2, 3), torch.ones(4, 5)),
            RuntimeError,
            r"linear: expected input \(\.\.\., 5\).*got \(2, 3\)",
        ),
        (
            lambda: (torch.ones(2, 3), torch.ones(4, 3), torch.ones(5)),
            RuntimeError,
            r"linear: expected bias \(4,\), got \(5,\)",
        ),
        (
            lambda: (torch.ones(2, 3), torch.ones(4, 3).double()),
            RuntimeError,
            "linear: expected weight of torch.float32",
        ),
        (lambda: ([1.0], torch.ones(4, 3)), TypeError, "linear: expected input to be a Tensor, got list"),
    ],
)
def test_bad_arguments_are_named(path, arguments, error, message):
    with pytest.raises(error, match=message):
        linear(*arguments())


def test_an_unknown_activation_is_named(path):
    with pytest.raises(ValueError, match="linear: expected activation none, relu.*got swish"):
        linear(torch.ones(2, 3), torch.ones(4, 3), activation="swish")
    with pytest.raises(RuntimeError, match="linear: expected activation none, relu.*got swish"):
        operators().linear(torch.ones(2, 3), torch.ones(4, 3), None, "swish")


def test_module_shares_state_with_the_stock_module(path):
    module, stock_module = nn.Linear(4, 3, activation="relu"), torch.nn.Linear(4, 3)
    assert isinstance(module, torch.nn.Linear)
    module.load_state_dict(stock_module.state_dict())
    stock_module.load_state_dict(module.state_dict())
    x = torch.randn(5, 4)
    torch.testing.assert_close(module(x), torch.relu(stock_module(x)))
    assert "activation='relu'" in repr(module)
    assert nn.Linear(4, 3, bias=False).bias is None


def has_bfloat16_instructions():
    with contextlib.suppress(OSError):
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    return False


@needs_native
@pytest.mark.skipif(not has_bfloat16_instructions(), reason="torch's bfloat16 products have no instructions here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("function", [linear, lambda x, w: matmul(x, w.t())], ids=["linear", "matmul"])
def test_large_bfloat16_products_are_the_stock_operator_s_and_no_others(function, dtype):
    x, w, g = (torch.randn(shape, dtype=dtype) for shape in ((64, 512), (256, 512), (64, 256)))
    leaves = [t.requires_grad_() for t in (x, w)]
    with torch.profiler.profile() as profile:
        torch.autograd.grad(function(x, w), leaves, g)
    products = sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
    assert products == (3 if dtype == torch.bfloat16 else 0)


PRODUCTS = {
    "linear": linear,
    "matmul": lambda x, w: matmul(x, w.t()),
    "addmm": lambda x, w: calls.addmm(x.new_ones(5), x, w.t()),
    "bmm": lambda x, w: calls.bmm(x[None], w.t()[None]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_a_gradient_does_not_need_may_be_changed_in_place(path, name):
    """As with the stock operators: the weight is needed for the input's gradient alone, and the other way round."""
    function, x, w = PRODUCTS[name], torch.randn(3, 4), torch.randn(5, 4)
    leaf = w.clone().requires_grad_()
    changed = leaf * 1
    y = function(x, changed)
    with torch.no_grad():
        changed.mul_(2)
    (ours,) = torch.autograd.grad(y.sum(), leaf)
    assert_same_bits(ours, torch.autograd.grad(function(x, leaf).sum(), leaf)[0])
    changed = x * 1
    y = function(changed, leaf)
    changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
