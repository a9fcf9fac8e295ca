"""mse_loss, binary_cross_entropy and binary_cross_entropy_with_logits: each test runs over all that it concerns."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import losses_elementwise as spec
from spec.orders import sum_columns

import pytorch_ext.functional as ours
import pytorch_ext.nn as nn
from pytorch_ext.backends import choice

LOSSES = ("mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
WEIGHTS = {"mse_loss": ("", "weight"), "binary_cross_entropy": ("", "weight")}
WEIGHTS["binary_cross_entropy_with_logits"] = ("", "weight", "pos_weight", "weight pos_weight")
CASES = [(loss, weights) for loss in LOSSES for weights in WEIGHTS[loss]]
REDUCTIONS = ("none", "mean", "sum")
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_case = pytest.mark.parametrize(("loss", "weights"), CASES)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def make(loss, shape, weights="", dtype=torch.float64):
    """input and target, which require gradients, and the named weights: mse_loss has the shape of input, else a row."""
    x, y = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    if loss == "binary_cross_entropy":
        x = 0.01 + 0.98 * torch.rand(shape, dtype=dtype)
    if loss != "mse_loss":
        y = torch.rand(shape, dtype=dtype)
    row = shape if loss == "mse_loss" else shape[-1:]
    return [x.requires_grad_(), y.requires_grad_(), *(0.5 + torch.rand(row, dtype=dtype) for _ in weights.split())]


def call(namespace, loss, weights="", reduction="mean"):
    """The loss as a function of input, target and the named weights."""
    return lambda x, y, *w: getattr(namespace, loss)(
        x, y, reduction=reduction, **dict(zip(weights.split(), w, strict=True))
    )


def magnitudes(loss, weights, reduction, inputs):
    """Sums of |terms| of the value and the two gradients, for |output gradient| up to 3; only logits cancel."""
    x, y, *w = inputs
    values = call(F, loss, weights, "none")(*inputs)
    slopes = torch.autograd.grad(values.sum(), (x, y))
    terms = 3 * (1 + x.abs()) if loss == "binary_cross_entropy_with_logits" else torch.zeros_like(x)
    scale = 3.0 if reduction != "mean" else 3.0 / (w[0].sum() if loss == "mse_loss" and weights else x.numel())
    values = (values.abs() + terms).detach()
    value = {"none": values, "sum": values.sum(), "mean": values.mean() if loss != "mse_loss" else values.sum() * scale}
    return [value[reduction], *((scale * (slope.abs() + terms)).detach() for slope in slopes)]


def expected(loss, weights, reduction, arrays, grad):
    """(value, dx, dy) of the specification."""
    x, y, *w = arrays
    given_weights = {name: np.broadcast_to(v, x.shape) for name, v in zip(weights.split(), w, strict=True)}
    value = spec.forward(loss, x, y, reduction=reduction, **given_weights)
    return value, *spec.backward(loss, grad, x, y, reduction=reduction, **given_weights)


def numpy(tensors):
    return [t.detach().numpy() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_reduction
@each_case
def test_results_are_accurate(path, loss, weights, reduction, dtype):
    shapes = [(), (1,), (5, 7), (64, 10), (3, 1500), (2, 3, 4)]
    for shape in shapes if choice.name != "triton" else shapes[1::3]:  # operation by operation, where interpreted
        inputs = make(loss, shape, weights)
        functions = (call(n, loss, weights, reduction) for n in (ours, F))
        assert_accurate(*functions, inputs, dtype, magnitudes(loss, weights, reduction, inputs))


@each_reduction
@each_case
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, loss, weights, reduction):
    for shape in [(1,), (5, 7), (63, 65), (300, 70)]:
        inputs = make(loss, shape, weights, torch.float32)
        grad = torch.randn(shape if reduction == "none" else ())

        def run(inputs=inputs, grad=grad):
            value = call(ours, loss, weights, reduction)(*inputs)
            return [value.detach(), *torch.autograd.grad(value, inputs[:2], grad)]

        results = each_cpu(run)
        assert_all_same_bits(results)
        spec_results = expected(loss, weights, reduction, numpy(inputs), grad.numpy())
        for name, a, b in zip(("value", "dx", "dy"), next(iter(results.values())), spec_results, strict=True):
            assert_same_bits(a, b, f"{name} of {shape}")


@each_case
def test_special_values_have_the_same_bits_everywhere(each_cpu, loss, weights):
    x, y, *w = make(loss, (9, 100), weights, torch.float32)
    with torch.no_grad():
        x[0], x[1], x[2], y[3] = 0.0, 1.0, 1e-40, 0.0
        y[0:3, ::2], y[0:3, 1::2] = 0, 1
        if loss != "binary_cross_entropy":
            x[4], x[5], x[6], x[7], y[8] = np.inf, -np.inf, np.nan, -1e4, np.nan

    def run():
        value = call(ours, loss, weights, "none")(x, y, *w)
        return [value.detach(), *torch.autograd.grad(value.sum(), (x, y))]

    results = each_cpu(run)
    assert_all_same_bits(results)
    one = np.ones((9, 100), np.float32)
    for a, b in zip(next(iter(results.values())), expected(loss, weights, "none", numpy([x, y, *w]), one), strict=True):
        assert_same_bits(a, b, loss)


@pytest.mark.parametrize("shapes", [((30, 1), (300,)), ((7, 5), ()), ((1, 9), (5000, 9)), ((4,), (2, 3, 4))], ids=str)
def test_gradients_of_broadcast_arguments_follow_the_sum_rule(each_cpu, shapes):
    x_shape, y_shape = shapes
    x, y = torch.randn(x_shape, requires_grad=True), torch.randn(y_shape, requires_grad=True)
    shape = np.broadcast_shapes(x_shape, y_shape)

    def run():
        with pytest.warns(UserWarning, match=r"target size \(torch.Size\(.*different to the input size"):
            value = ours.mse_loss(x, y)
        return [value.detach(), *torch.autograd.grad(value, (x, y))]

    def summed(full, sizes):
        padded = (1,) * (len(shape) - len(sizes)) + tuple(sizes)
        over = [d for d in range(len(shape)) if padded[d] != shape[d]]
        kept = [d for d in range(len(shape)) if d not in over]
        rows = full.transpose(*over, *kept).reshape(-1, *(shape[d] for d in kept))
        return (sum_columns(rows) if over else full).reshape(sizes)

    results = each_cpu(run)
    assert_all_same_bits(results)
    arrays = [np.broadcast_to(a, shape) for a in numpy([x, y])]
    value, dx, dy = expected("mse_loss", "", "mean", arrays, np.float32(1))
    for a, b in zip(next(iter(results.values())), (value, summed(dx, x_shape), summed(dy, y_shape)), strict=True):
        assert_same_bits(a, b)


def test_a_weighted_mean_divides_by_the_weights_as_given(path):
    x, y, weight = torch.rand(4, requires_grad=True), torch.rand(3, 4), 0.5 + torch.rand(4)
    with pytest.warns(UserWarning, match="broadcasting"):
        a, b = (f.mse_loss(x, y, weight=weight) for f in (ours, F))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(v, x) for v in (a, b)))
    arrays = [np.broadcast_to(v.detach().numpy(), (3, 4)) for v in (x, y, weight)]
    assert_same_bits(a, spec.forward("mse_loss", *arrays, mean_weight=weight.numpy()))


@each_case
def test_first_and_second_derivatives_match_finite_differences(path, loss, weights):
    for reduction in REDUCTIONS:
        inputs = make(loss, (3, 4), weights)
        function = call(ours, loss, weights, reduction)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
        for alone in range(2):
            others = [t.detach() for t in inputs]
            assert torch.autograd.gradgradcheck(function, [*others[:alone], inputs[alone], *others[alone + 1 :]])
    if loss == "mse_loss" and not weights:
        inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 1), (4,))]
        with pytest.warns(UserWarning):
            assert torch.autograd.gradcheck(ours.mse_loss, inputs)
            assert torch.autograd.gradgradcheck(ours.mse_loss, inputs)


@each_case
def test_the_gradient_of_the_forward_pass_has_the_bits_of_the_backward_pass(path, loss, weights):
    for reduction in ("mean", "sum"):
        inputs = make(loss, (70, 130), weights, torch.float32)
        value = call(ours, loss, weights, reduction)(*inputs)
        in_advance = torch.autograd.grad(value, inputs[:2], retain_graph=True)
        again = torch.autograd.grad(value, inputs[:2], retain_graph=True)
        differentiable = torch.autograd.grad(value, inputs[:2], create_graph=True)
        scaled = torch.autograd.grad(4 * value, inputs[:2])
        for a, b, c, d in zip(in_advance, again, differentiable, scaled, strict=True):
            assert_same_bits(a, b, "again")
            assert_same_bits(a, c, "create_graph")
            assert_same_bits(4 * a, d, "scaled")
            assert a.data_ptr() != b.data_ptr()


@each_loss
def test_backward_twice_accumulates(path, loss):
    x, y = make(loss, (3, 4), dtype=torch.float32)
    value = getattr(ours, loss)(x, y)
    value.backward(retain_graph=True)
    first = x.grad.clone(), y.grad.clone()
    value.backward()
    assert_same_bits(x.grad, 2 * first[0])
    assert_same_bits(y.grad, 2 * first[1])
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@needs_native
@each_loss
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 70), st.integers(0, 200), st.booleans(), st.booleans(), st.sampled_from(REDUCTIONS))
def test_any_shape_and_layout_gives_the_bits_of_contiguous_copies(loss, m, n, transposed, sliced, reduction):
    x, y = (t.detach() for t in make(loss, (n, m), dtype=torch.float32))
    x = x.T if transposed else x.reshape(m, n)
    y = torch.stack([y, y], -1)[..., 0].reshape(n, m).T if sliced else y.expand(n, m).T
    leaves = [t.requires_grad_() for t in (x, y)]
    copies = [t.detach().contiguous().requires_grad_() for t in leaves]
    value, value_copy = (call(ours, loss, reduction=reduction)(*t) for t in (leaves, copies))
    assert_same_bits(value, value_copy)
    for a, c in zip(
        torch.autograd.grad(value.sum(), leaves), torch.autograd.grad(value_copy.sum(), copies), strict=True
    ):
        assert_same_bits(a, c)


@each_loss
def test_nothing_has_the_mean_nan_and_the_sum_zero(path, loss):
    x, y = make(loss, (0, 3), dtype=torch.float32)
    assert getattr(ours, loss)(x, y).isnan()
    assert getattr(ours, loss)(x, y, reduction="sum") == 0
    assert getattr(ours, loss)(x, y, reduction="none").shape == (0, 3)
    getattr(ours, loss)(x, y).backward()
    assert x.grad.shape == (0, 3)


@each_loss
def test_gradients_only_where_required(path, loss):
    for wanted in itertools.product((True, False), repeat=2):
        x, y = (t.requires_grad_(r) for t, r in zip((t.detach() for t in make(loss, (3, 4))), wanted, strict=True))
        value = getattr(ours, loss)(x, y)
        assert value.requires_grad == any(wanted)
        if any(wanted):
            value.backward()
        assert [t.grad is not None for t in (x, y)] == list(wanted)
    with torch.no_grad():
        assert not getattr(ours, loss)(*make(loss, (3, 4))).requires_grad
    with torch.inference_mode():
        assert getattr(ours, loss)(*make(loss, (3, 4))).is_inference()


@each_loss
def test_an_input_changed_in_place_is_noticed(path, loss):
    x, y = make(loss, (3, 4))
    y = y.detach()
    value = getattr(ours, loss)(x, y)
    y.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@each_case
def test_registered_operator_and_compilation(path, loss, weights):
    inputs = make(loss, (3, 4), weights, torch.float32)
    slots = {"mse_loss": ["weight"], "binary_cross_entropy": ["weight"]}.get(loss, ["weight", "pos_weight"])
    named = dict(zip(weights.split(), inputs[2:], strict=True))
    operator = getattr(operators(), loss)
    for number in range(3):
        torch.library.opcheck(operator, (*inputs[:2], *(named.get(slot) for slot in slots), number))
    torch._dynamo.reset()  # every case compiles one and the same function
    for reduction in ("none", "mean"):
        function = call(ours, loss, weights, reduction)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        a, b = function(*inputs), compiled(*inputs)
        assert_same_bits(a, b)
        for da, db in zip(*(torch.autograd.grad(v.square().sum(), inputs[:2]) for v in (a, b)), strict=True):
            assert_same_bits(da, db)


def test_compiled_broadcasting_warns_and_has_the_bits_of_eager(path):
    x, y = torch.randn(3, 1, requires_grad=True), torch.randn(4, requires_grad=True)
    torch.library.opcheck(operators().mse_loss, (x, y, None, 1))
    with pytest.warns(UserWarning, match="different to the input size"):
        values = [f(x, y) for f in (ours.mse_loss, torch.compile(ours.mse_loss, fullgraph=True, backend="aot_eager"))]
    assert_same_bits(*values)
    for a, b in zip(*(torch.autograd.grad(value, (x, y)) for value in values), strict=True):
        assert_same_bits(a, b)


@each_loss
def test_functional_transforms_take_the_stock_composition(path, loss):
    x, y = (t.detach() for t in make(loss, (3, 4)))
    function, stock = getattr(ours, loss), getattr(F, loss)
    torch.testing.assert_close(torch.func.grad(function)(x, y), torch.func.grad(stock)(x, y))
    torch.testing.assert_close(torch.func.vmap(function)(x, y), torch.func.vmap(stock)(x, y))


@each_loss
def test_autocast_computes_in_float32(path, loss):
    x, y = (t.detach() for t in make(loss, (3, 4), dtype=torch.float32))
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value, stock = getattr(ours, loss)(x, y), getattr(F, loss)(x, y)
    assert value.dtype == stock.dtype == torch.float32
    assert_same_bits(value, getattr(ours, loss)(x.float(), y))
    value.backward()
    assert x.grad.dtype == torch.bfloat16


def test_tensors_the_kernels_do_not_cover_take_the_stock_operator(path):
    x, y = torch.rand(3, 4), torch.rand(3, 4)
    assert_same_bits(ours.mse_loss(x, y.long()), F.mse_loss(x, y.long()))
    for function in (ours.mse_loss, ours.binary_cross_entropy_with_logits):
        assert function(x, y.double()).dtype == torch.float64
        with pytest.raises(NotImplementedError):
            function(x.long(), y.long())
    weight = torch.rand(3, 4, requires_grad=True)
    ours.mse_loss(x, y, weight=weight).backward()
    assert weight.grad is not None
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        ours.binary_cross_entropy(x, y, weight)


@each_loss
def test_the_deprecated_flags_decide_as_in_stock(path, loss):
    x, y = make(loss, (3, 4), dtype=torch.float32)
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        if size_average is reduce is None:
            continue
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            values = [getattr(f, loss)(x, y, size_average=size_average, reduce=reduce) for f in (ours, F)]
        torch.testing.assert_close(*values)


ONES, HALVES = torch.ones(2, 3), torch.full((2, 3), 0.5)


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        ("mse_loss", (ONES, torch.ones(4)), RuntimeError, r"expected target that broadcasts with input \(2, 3\)"),
        ("mse_loss", ([1.0], ONES), AttributeError, "expected input to be a Tensor, got list"),
        ("mse_loss", (ONES, ONES, None, None, "mean", torch.ones(3)), ValueError, r"expected weight \(2, 3\) as input"),
        ("binary_cross_entropy", (HALVES + 1, HALVES), RuntimeError, "expected input between 0 and 1, got 1.5"),
        ("binary_cross_entropy", (HALVES, -HALVES), RuntimeError, "expected target between 0 and 1, got -0.5"),
        ("binary_cross_entropy", (HALVES * np.nan, HALVES), RuntimeError, "expected input between 0 and 1, got nan"),
        ("binary_cross_entropy", (HALVES, HALVES.double()), RuntimeError, "expected target of torch.float32 as input"),
    ],
)
def test_bad_arguments_are_named(path, loss, arguments, error, message):
    with pytest.raises(error, match=f"^{loss}: {message}"):
        getattr(ours, loss)(*arguments)


@each_loss
def test_bad_arguments_of_every_loss_are_named(path, loss):
    function = getattr(ours, loss)
    with pytest.raises(ValueError, match=f"^{loss}: expected reduction one of none, mean, sum, got average"):
        function(HALVES, HALVES, reduction="average")
    if loss != "mse_loss":
        with pytest.raises(ValueError, match=rf"^{loss}: expected target \(2, 3\) as input, got \(3,\)"):
            function(HALVES, HALVES[0])
        with pytest.raises(RuntimeError, match=rf"^{loss}: expected weight that broadcasts to \(2, 3\), got \(2,\)"):
            function(HALVES, HALVES, weight=torch.ones(2))


@pytest.mark.parametrize("name", ["MSELoss", "BCELoss", "BCEWithLogitsLoss"])
def test_modules_equal_the_stock_modules(path, name):
    options = {"BCELoss": ("weight",), "BCEWithLogitsLoss": ("weight", "pos_weight")}.get(name, ())
    arguments = {option: torch.rand(4) for option in options}
    x, y = torch.rand(3, 4), torch.rand(3, 4)
    for reduction in REDUCTIONS:
        module, stock = (getattr(n, name)(reduction=reduction, **arguments) for n in (nn, torch.nn))
        assert isinstance(module, type(stock)) and repr(module) == repr(stock)
        module.load_state_dict(stock.state_dict())
        assert module.state_dict().keys() == stock.state_dict().keys()
        torch.testing.assert_close(module(x, y), stock(x, y))
