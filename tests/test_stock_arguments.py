"""Arguments that PyTorch's generated samples leave out: deprecated ones, ``out=``, and what both must refuse alike."""

import itertools

import numpy
import pytest
import torch
import torch.nn.functional as stock
from agreement import assert_agree, error_of
from conftest import on_cpu_paths

import pytorch_ext.functional as F
import pytorch_ext.nn as nn
from pytorch_ext import calls

pytestmark = on_cpu_paths


def probabilities(*shape):
    return torch.rand(shape, dtype=torch.float64).mul(0.9).add(0.05)


def operands(name, n=6, classes=4):
    if name in ("cross_entropy", "nll_loss"):
        return torch.randn(n, classes, dtype=torch.float64, requires_grad=True), torch.randint(classes, (n,))
    return probabilities(n, classes).requires_grad_(), probabilities(n, classes)


LOSSES = ("mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "nll_loss")
MODULE_OF = dict(zip(LOSSES, ("MSELoss", "BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "NLLLoss"), strict=True))
FLAGS = [flags for flags in itertools.product((None, True, False), repeat=2) if flags != (None, None)]


@pytest.mark.parametrize(("size_average", "reduce"), FLAGS)
@pytest.mark.parametrize("name", LOSSES)
def test_deprecated_flags_of_a_loss_decide_its_reduction(name, size_average, reduce):
    flags = {"size_average": size_average, "reduce": reduce}
    assert_agree(getattr(F, name), getattr(stock, name), *operands(name), **flags)

    def by_module(namespace):
        return lambda *args: getattr(namespace, MODULE_OF[name])(**flags)(*args)

    assert_agree(by_module(nn), by_module(torch.nn), *operands(name))


@pytest.mark.parametrize("reduction", ["elementwise_mean", "Mean", "", None, 1, "average"])
@pytest.mark.parametrize("name", LOSSES)
def test_another_reduction_is_taken_or_refused_alike(name, reduction):
    ours, theirs, args = getattr(F, name), getattr(stock, name), operands(name)
    expected = error_of(theirs, *args, reduction=reduction)
    assert error_of(ours, *args, reduction=reduction) is expected
    if expected is None:
        assert_agree(ours, theirs, *args, reduction=reduction)


@pytest.mark.parametrize("dims", range(5))
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_without_a_dimension_warns_and_chooses_the_same(name, dims):
    x = torch.randn([3, 2, 4, 2, 3][:dims], requires_grad=True)
    assert_agree(getattr(F, name), getattr(stock, name), x)
    module = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[name]
    assert_agree(getattr(nn, module)(), getattr(torch.nn, module)(), x)


@pytest.mark.parametrize("shapes", [((4, 3), (3,)), ((4, 1), (4, 3)), ((3,), (4, 3)), ((4, 3), ()), ((1,), (2, 1, 3))])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_mse_loss_warns_where_it_broadcasts(shapes, reduction):
    x, y = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert_agree(F.mse_loss, stock.mse_loss, x, y, reduction=reduction)


WRONG = {
    "binary_cross_entropy": [((4, 3), (3,)), ((4,), (4, 1)), ((2, 2), (4,))],
    "binary_cross_entropy_with_logits": [((4, 3), (3,)), ((4,), (4, 1)), ((2, 2), (4,))],
    "mse_loss": [((4, 3), (2,)), ((2, 2), (4,))],
    "linear": [((4, 3), (5, 4)), ((), (3, 3)), ((3,), (4,)), ((2, 3), (2, 3, 3))],
    "matmul": [((4, 3), (4, 3)), ((), (3,)), ((3,), (4,)), ((2, 3, 3), (3, 3, 3))],
}


@pytest.mark.parametrize(("name", "shapes"), [(name, shapes) for name, pairs in WRONG.items() for shapes in pairs])
def test_shapes_that_do_not_fit_are_refused_by_the_same_class(name, shapes):
    theirs = getattr(stock, name, None) or getattr(torch, name)
    x, y = (probabilities(*shape) for shape in shapes)
    expected = error_of(theirs, x, y)
    assert error_of(getattr(F, name), x, y) is expected


# ---- out= -----------------------------------------------------------------------------------------------------------

WITH_OUT = {
    "linear": (stock.linear, F.linear, lambda: (torch.randn(3, 4), torch.randn(5, 4), torch.randn(5))),
    "matmul": (torch.matmul, F.matmul, lambda: (torch.randn(3, 4), torch.randn(4, 5))),
    "gelu": (stock.gelu, F.gelu, lambda: (torch.randn(3, 4),)),
}


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("given", ["fits", "empty", "another shape", "strided"])
def test_a_result_is_written_where_out_says(name, given):
    theirs, ours, arguments = WITH_OUT[name]
    args = arguments()
    plain = ours(*args)
    make = {
        "fits": lambda: torch.empty_like(plain),
        "empty": lambda: torch.empty(0),
        "another shape": lambda: torch.empty(2, 2),
        "strided": lambda: torch.empty(plain.mT.shape).mT,
    }[given]

    def into(function):
        def call(*args):
            out = make()
            result = function(*args, out=out)
            assert result is out
            return result

        return call

    assert torch.equal(into(ours)(*args), plain)
    if (name, given) != ("gelu", "strided"):  # torch 2.13 writes something else there
        assert_agree(into(ours), into(theirs), *args)


@pytest.mark.parametrize("name", WITH_OUT)
def test_an_out_that_cannot_be_written_is_refused_by_the_same_class(name):
    theirs, ours, arguments = WITH_OUT[name]
    args = arguments()
    differentiable = (args[0].requires_grad_(), *args[1:])
    plain = arguments()
    calls = [
        lambda f: f(*differentiable, out=torch.empty(0)),
        lambda f: f(*plain, out=torch.empty(0, requires_grad=True)),
        lambda f: f(*plain, out=torch.empty(0, dtype=torch.float64)),
        lambda f: f(*plain, out=3),
    ]
    for call in calls:
        assert error_of(call, ours) is error_of(call, theirs) is not None
    with torch.no_grad():
        assert_agree(
            lambda *args: ours(*args, out=torch.empty(0)), lambda *args: theirs(*args, out=torch.empty(0)), *args
        )


# ---- tensors that are laid out otherwise ----------------------------------------------------------------------------


def nested(layout):
    return torch.nested.nested_tensor([torch.ones(3, 8), torch.arange(16.0).view(2, 8) / 16], layout=layout)


OTHERWISE = {
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "coo": lambda: torch.eye(8).to_sparse(),
    "csr": lambda: torch.eye(8).to_sparse_csr(),
    "mkldnn": lambda: torch.eye(8).to_mkldnn(),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8),
}
SQUARE = torch.arange(64.0).view(8, 8) / 64
CALLS = {
    "linear": lambda f, t: f.linear(t, SQUARE),
    "linear's weight": lambda f, t: f.linear(SQUARE, t),
    "matmul": lambda f, t: getattr(f, "matmul", torch.matmul)(t, SQUARE),
    "softmax": lambda f, t: f.softmax(t, -1),
    "gelu": lambda f, t: f.gelu(t),
    "dropout": lambda f, t: f.dropout(t, 0.0),
    "mse_loss": lambda f, t: f.mse_loss(t, SQUARE),
    "class weights": lambda f, t: f.cross_entropy(SQUARE, torch.arange(8), weight=t),
    "pos_weight": lambda f, t: f.binary_cross_entropy_with_logits(SQUARE, SQUARE, pos_weight=t),
    "attention": lambda f, t: f.scaled_dot_product_attention(t, t, t),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", OTHERWISE)
@pytest.mark.parametrize("call", CALLS)
def test_other_layouts_are_torchs(call, layout):
    t = OTHERWISE[layout]()
    expected = error_of(CALLS[call], stock, t)
    assert error_of(CALLS[call], F, t) is expected
    if expected is None:
        mine, theirs = (CALLS[call](f, t) for f in (F, stock))
        assert (mine.layout, mine.dtype, mine.is_nested) == (theirs.layout, theirs.dtype, theirs.is_nested)
        if mine.is_nested:
            mine, theirs = mine.unbind(), theirs.unbind()
        elif mine.layout != torch.strided:
            mine, theirs = mine.to_dense(), theirs.to_dense()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"class weights", "pos_weight"}))
def test_tensors_without_values_have_torchs_shapes(monkeypatch, call):
    """On the meta device, where torch knows of no autocast."""
    monkeypatch.setitem(globals(), "SQUARE", SQUARE.to("meta"))
    t = torch.empty(8, 8, device="meta", requires_grad=True)
    mine, theirs = (CALLS[call](f, t * 1) for f in (F, stock))
    assert mine.is_meta and mine.shape == theirs.shape and mine.dtype == theirs.dtype
    mine.sum().backward()
    assert t.grad.is_meta


# ---- dropout, by its rules: the mask is another one than torch's -----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expected_share_and_scales_it(p, dtype):
    x = torch.rand(40_000, dtype=dtype).add(1).requires_grad_()
    for function in (F.dropout, stock.dropout):
        y = function(x, p)
        kept = y != 0
        assert abs(kept.double().mean().item() - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5
        torch.testing.assert_close(y[kept], (x.double() / (1 - p)).to(dtype)[kept])
        (g,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(g, kept.to(dtype) / (1 - p))


@pytest.mark.parametrize(("p", "training"), [(0, True), (0.0, True), (1, True), (1.0, True), (0.5, False), (1, False)])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_dropout_without_a_choice_is_torchs(p, training, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert_agree(F.dropout, stock.dropout, x, p, training)
    module = (cls(p).train(training) for cls in (nn.Dropout, torch.nn.Dropout))
    assert_agree(*module, x)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_refuses_a_probability_as_torch_does(p):
    x = torch.randn(3)
    assert error_of(F.dropout, x, p) is error_of(stock.dropout, x, p)
    assert error_of(nn.Dropout, p) is error_of(torch.nn.Dropout, p)


# ---- what is no such argument at all --------------------------------------------------------------------------------

OTHERS = [None, 0, 2, -0.5, 1.5, float("nan"), "x", True, (1,), [1], torch.tensor(1), torch.float64, 2**70, object()]
OPTIONS = {
    "softmax": ("dim", "dtype"),
    "log_softmax": ("dim", "dtype"),
    "gelu": ("approximate",),
    "dropout": ("p", "training"),
    "cross_entropy": ("ignore_index", "label_smoothing"),
    "nll_loss": ("ignore_index",),
    "linear_cross_entropy": ("ignore_index", "label_smoothing", "options"),
    "scaled_dot_product_attention": ("dropout_p", "is_causal", "scale", "enable_gqa"),
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in OPTIONS for option in OPTIONS[name]])
def test_an_option_of_any_kind_is_taken_or_refused_alike(name, option):
    theirs = getattr(stock, name, None)
    if theirs is None:
        pytest.skip("this torch has no such function")
    x, labels = torch.rand(3, 4), torch.tensor([0, 3, 1])
    arguments = {"scaled_dot_product_attention": (x, x, x), "linear_cross_entropy": (x, torch.rand(4, 4), labels)}
    arguments |= {"cross_entropy": (x, labels), "nll_loss": (x, labels)}
    given = {"dim": 1} if "softmax" in name else {}
    for value in OTHERS:
        expected = error_of(theirs, *arguments.get(name, (x,)), **given | {option: value})
        assert error_of(getattr(F, name), *arguments.get(name, (x,)), **given | {option: value}) is expected, value


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid", "tanh"])
@pytest.mark.parametrize("value", [None, 2.0, "text", [1.0], numpy.ones(2)], ids=lambda value: type(value).__name__)
def test_torchs_name_and_the_functional_one_refuse_each_by_its_class(name, value):
    dim = (0,) if "softmax" in name else ()
    for theirs in (getattr(torch, name), getattr(stock, name)):
        ours = getattr(F, name) if theirs is getattr(stock, name) else calls.TWINS[theirs]
        assert error_of(ours, value, *dim) is error_of(theirs, value, *dim) is not None
