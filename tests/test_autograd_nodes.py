"""The native operators' nodes of autograd's graph: what they keep, free and refuse; compiled autograd."""

import os
import weakref
from pathlib import Path

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_native
from torch._dynamo import compiled_autograd

import pytorch_ext.functional as F

pytestmark = needs_native


def leaves(*sizes):
    return [torch.rand(size, requires_grad=True) for size in sizes]


X, W, B, P = (6, 8), (5, 8), (5,), (6, 5)
LABELS = torch.arange(6) % 5
ATTENTION = (2, 3, 7, 4)
# {name: (function, sizes of what requires a gradient)}
CALLS = {
    "linear": (F.linear, (X, W, B)),
    "linear, relu": (lambda x, w, b: F.linear(x, w, b, activation="relu"), (X, W, B)),
    "linear, gelu": (lambda x, w, b: F.linear(x, w, b, activation="gelu"), (X, W, B)),
    "matmul": (lambda x, w: F.matmul(x, w.t()), (X, W)),
    "softmax": (lambda x: F.softmax(x, 1), (X,)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), (X,)),
    "sigmoid": (F.sigmoid, (X,)),
    "silu": (F.silu, (X,)),
    "dropout": (lambda x: F.dropout(x, 0.5), (X,)),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), (P,)),
    "nll_loss": (lambda x: F.nll_loss(x, LABELS), (P,)),
    "mse_loss": (F.mse_loss, (X, X)),
    "binary_cross_entropy": (lambda x: F.binary_cross_entropy(x, torch.full(X, 0.5)), (X,)),
    "linear_cross_entropy": (lambda x, w: F.linear_cross_entropy(x, w, LABELS), (X, W)),
    "attention": (F.scaled_dot_product_attention, (ATTENTION, ATTENTION, ATTENTION)),
}
each_call = pytest.mark.parametrize("name", CALLS)


@each_call
def test_compiled_autograd_gives_eager_s_bits(name):
    check_compiled_autograd(name)


def check_compiled_autograd(name):
    function, sizes = CALLS[name]
    inputs = leaves(*sizes)

    def gradients():
        torch.manual_seed(3)
        (function(*inputs) * 2).sum().backward()
        found = [t.grad for t in inputs]
        for t in inputs:
            t.grad = None
        return found

    eager = gradients()
    torch._dynamo.reset()
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        compiled = gradients()
    for a, b in zip(eager, compiled, strict=True):
        assert_same_bits(a, b)


@each_call
def test_a_second_backward_pass_is_refused_unless_the_graph_is_kept(name):
    function, sizes = CALLS[name]
    inputs = leaves(*sizes)
    total = function(*inputs).sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, inputs), strict=True):
        assert_same_bits(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(total, inputs)


@each_call
def test_hooks_see_what_is_saved_and_replace_it(name):
    function, sizes = CALLS[name]
    inputs, packed = leaves(*sizes), []
    torch.manual_seed(3)
    expected = torch.autograd.grad(function(*inputs).sum(), inputs)
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        total = function(*inputs).sum()
    found = torch.autograd.grad(total, inputs)
    assert packed
    for a, b in zip(expected, found, strict=True):
        assert_same_bits(a, b)


@each_call
def test_a_graph_that_is_dropped_frees_what_it_kept(name):
    function, sizes = CALLS[name]
    inputs = leaves(*sizes)
    middle = [t * 1 for t in inputs]
    alive = [weakref.ref(t) for t in middle]
    output = function(*middle)
    del middle, output
    assert [t() for t in alive] == [None] * len(alive)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not tell")
@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, lambda x, dim: F.sigmoid(x)])
def test_a_node_that_saves_its_own_output_is_freed(function):
    x = torch.rand(1024, 512, requires_grad=True)  # 2 MB
    function(x, 1)
    before = resident()
    for _ in range(100):
        function(x, 1)
    assert resident() - before < 20e6


def test_a_tangent_is_refused_where_nothing_would_carry_it_on():
    x = torch.rand(X, requires_grad=True)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(X))
        with pytest.raises(NotImplementedError, match="expected inputs without forward-mode tangents"):
            torch.ops.pytorch_ext.softmax(dual, 1)
        assert torch.autograd.forward_ad.unpack_dual(F.softmax(dual, 1)).tangent is not None


def test_a_value_changed_in_place_is_noticed():
    x, w = leaves(X, W)
    total = F.linear(x, w).sum()
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_node_has_a_name_and_knows_the_inputs():
    x, w = leaves(X, W)
    node = F.linear(x, w).grad_fn
    assert node.name() == "LinearBackward"
    assert [edge[0] and edge[0].variable is t for edge, t in zip(node.next_functions, (x, w), strict=False)] == [
        True
    ] * 2
