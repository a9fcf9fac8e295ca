"""What the Triton path keeps for the backward pass, and the derivatives that come out of that."""

import itertools

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_interpreter
from test_autograd_nodes import check_compiled_autograd, each_call

import pytorch_ext
import pytorch_ext.functional as F
from pytorch_ext.ops.activation import ACTIVATIONS
from pytorch_ext.triton_path import kernels

pytestmark = needs_interpreter

X, W, B = (6, 8), (5, 8), (5,)
SAVED = {"none": 0, "sigmoid": 30, "gelu": 30, "silu": 30}  # elements of y or z that are saved
SUBSETS = [wanted for wanted in itertools.product((True, False), repeat=3) if any(wanted)]


@pytest.fixture(autouse=True)
def triton():
    with pytorch_ext.backend("triton"):
        yield


def kept(function):
    """(the result, how many elements the tensors saved for its backward pass have in memory)"""
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        result = function()
    return result, sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in packed}.values())


def arguments(wanted, dtype=torch.float32):
    return [torch.randn(size, dtype=dtype).requires_grad_(g) for size, g in zip((X, W, B), wanted, strict=True)]


def placeholders(*needed):
    """Elements in memory of factors: all, or one in place of those that are not needed."""
    return sum(size[0] * size[1] if wanted else 1 for size, wanted in zip((X, W), needed, strict=True))


@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
@pytest.mark.parametrize("kind", SAVED)
def test_linear_keeps_what_the_wanted_gradients_need(kind, wanted):
    x, w, b = arguments(wanted)
    _, elements = kept(lambda: F.linear(x, w, b, activation=kind))
    assert elements == placeholders(wanted[1], wanted[0]) + SAVED[kind]


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
def test_linear_stores_its_activation_s_input_only_for_a_gradient(monkeypatch, kind):
    stored, product = [], kernels.linear.product

    def record(*arguments, **options):
        y, z = product(*arguments, **options)
        stored.append(z is not None)
        return y, z

    monkeypatch.setattr(kernels.linear, "product", record)
    x, w, b = arguments((False, False, True))
    results = [F.linear(x, w, b, activation=kind), F.linear(x, w, b.detach(), activation=kind)]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            results.append(F.linear(x, w, b, activation=kind))
    assert stored == [True, False, False, False]
    for y in results[1:]:
        assert_same_bits(y, results[0])


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
def test_matmul_keeps_what_the_wanted_gradients_need(wanted):
    x, w, _ = arguments((*wanted, False))
    for A, B in ((x, w.t()), (x[None], w.t()), (x, w.t()[None].expand(3, -1, -1))):
        _, elements = kept(lambda A=A, B=B: F.matmul(A, B))
        assert elements == placeholders(wanted[1], wanted[0])


@pytest.mark.parametrize("kind", SAVED)
def test_a_frozen_weight_s_input_may_be_changed_in_place_whatever_the_activation(kind):
    x, w, b = arguments((True, False, False))
    changed = x * 1
    y = F.linear(changed, w, b, activation=kind)
    changed.mul_(3)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert_same_bits(found, torch.autograd.grad(F.linear(x, w, b, activation=kind).sum(), x)[0])


@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
@pytest.mark.parametrize("kind", SAVED)
def test_second_derivatives_of_any_arguments_are_torch_s(kind, wanted):
    tensors = arguments(wanted, torch.float64)
    leaves = [t for t in tensors if t.requires_grad]
    activation = ACTIVATIONS[kind]

    def penalty(y):
        """The loss and its gradient's norm in one sum, so that both come back through one node."""
        gradients = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        return y.sum() + sum(g.pow(2).sum() for g in gradients)

    found = torch.autograd.grad(penalty(F.linear(*tensors, activation=kind)), leaves)
    expected = torch.autograd.grad(penalty(activation(torch.nn.functional.linear(*tensors))), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def labels(count, classes):
    return torch.arange(count) % classes


CHANGED = {  # results that no backward pass needs, and may be views of what a kernel wrote
    "linear": (F.linear, X, W, B),
    "linear, batch": (F.linear, (2, *X), W, B),
    "linear, silu": (lambda *t: F.linear(*t, activation="silu"), X, W, B),
    "matmul": (lambda x, w: F.matmul(x, w.t()), X, W),
    "matmul, batch": (lambda x, w: F.matmul(x, w.t()), (2, *X), W),
    "matmul, a vector": (F.matmul, X, X[1:]),
    "matmul, dot": (F.matmul, X[1:], X[1:]),
    "gelu": (F.gelu, X),
    "dropout": (lambda x: F.dropout(x, 0.0001), X),
    "cross_entropy": (lambda x: F.cross_entropy(x, labels(*X)), X),
    "cross_entropy, rows": (lambda x: F.cross_entropy(x, labels(*X), reduction="none"), X),
    "nll_loss": (lambda x: F.nll_loss(x, labels(*X)), X),
    "nll_loss, rows": (lambda x: F.nll_loss(x, labels(*X), reduction="none"), X),
    "mse_loss": (F.mse_loss, X, X),
    "mse_loss, elements": (lambda x, y: F.mse_loss(x, y, reduction="none"), X, X),
    "linear_cross_entropy": (lambda x, w: F.linear_cross_entropy(x, w, labels(6, 5)), X, W),
    "linear_cross_entropy, rows": (lambda x, w: F.linear_cross_entropy(x, w, labels(6, 5), reduction="none"), X, W),
    "attention": (F.scaled_dot_product_attention, (2, *X), (2, *X), (2, *X)),
}
LOSSES = [name for name in CHANGED if "loss" in name or "entropy" in name]


@pytest.mark.parametrize("name", CHANGED)
def test_a_result_may_be_changed_in_place(name):
    function, *shapes = CHANGED[name]
    leaves = [torch.randn(shape).requires_grad_() for shape in shapes]
    expected = function(*leaves) * 3
    changed = function(*leaves).mul_(3)
    assert_same_bits(changed, expected)
    for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (changed, expected)), strict=True):
        assert_same_bits(a, b)
    with torch.no_grad():
        constant = function(*leaves)
    added = torch.ones(constant.shape, requires_grad=True)
    constant.add_(added).sum().backward()
    assert (added.grad == 1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_computes_no_gradient_in_advance_where_none_is_recorded(launched, name):
    function, *shapes = CHANGED[name]
    leaves = [torch.randn(shape).requires_grad_() for shape in shapes]
    expected = function(*(t.detach() for t in leaves))
    forward = dict(launched)
    for context in (torch.no_grad, torch.inference_mode):
        launched.clear()
        with context():
            found = function(*leaves)
        assert launched == forward and not found.requires_grad
        assert_same_bits(found, expected)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@each_call
def test_compiled_autograd_gives_eager_s_bits(name):
    check_compiled_autograd(name)
