"""softmax and log_softmax: forward, gradients, second derivatives, on every path, instruction set and thread count."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import softmax as spec

import pytorch_ext.functional as ours
import pytorch_ext.nn as nn
from pytorch_ext.backends import choice

OPS = ["softmax", "log_softmax"]
MODULES = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}
SHAPES = [((3, 5), 1), ((64, 10), 1), ((5, 300), -1), ((2, 5000), 1), ((300, 7), 0), ((2, 70, 3), 1), ((2, 70, 40), 1)]
EMPTY = [((0, 4), 1), ((4, 0), 1), ((0,), 0), ((4, 0), 0)]
INF, NAN = float("inf"), float("nan")

each_op = pytest.mark.parametrize("op", OPS)


def make(*shape, dtype=torch.float32, grad=True, scale=3):
    return (scale * torch.randn(shape, dtype=dtype)).requires_grad_(grad)


def expected(op, x, g, dim):
    """The specification's output and input gradient."""
    moved = x.detach().movedim(dim, -1).numpy()
    y = spec.VALUE[op](moved)
    dx = spec.GRADIENT[op](g.movedim(dim, -1).numpy(), y)
    return [torch.tensor(t).movedim(-1, dim) for t in (y, dx)]


@each_op
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_accurate(path, op, dtype):
    cases = [*SHAPES, *EMPTY, ((), 0)]
    for shape, dim in cases if choice.name != "triton" else cases[::3]:  # operation by operation, where interpreted
        x = make(*shape, dtype=torch.float64)
        p = F.softmax(x.detach(), dim)
        magnitudes = [p, p * 6] if op == "softmax" else [-p.log() + x.detach().abs() + 10, 3 + p * 3 * p.numel()]
        call, stock = (lambda x, f=f, dim=dim: f(x, dim) for f in (getattr(ours, op), getattr(F, op)))
        assert_accurate(call, stock, [x], dtype, magnitudes)


@each_op
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, op):
    for shape, dim in [*SHAPES, ((1, 1), 1), ((20, 48), 1), ((20, 49), 1), ((70, 5, 8), 1), ((3, 4100, 20), 1)]:
        x, g = make(*shape), torch.randn(shape)

        def run(x=x, g=g, dim=dim):
            y = getattr(ours, op)(x, dim)
            return [y.detach(), *torch.autograd.grad(y, x, g)]

        results = each_cpu(run)
        assert_all_same_bits(results)
        for name, a, b in zip(("y", "dx"), next(iter(results.values())), expected(op, x, g, dim), strict=True):
            assert_same_bits(a, b.contiguous(), f"{name} of {shape}")


@each_op
def test_special_values_are_where_stock_has_them(each_cpu, op):
    for columns in (9, 200):
        x = make(40, columns, grad=False)
        x[0, 1], x[1, 2], x[2, 3], x[3], x[4], x[5] = NAN, INF, -INF, -INF, 1e-40, -0.0
        x[6], x[7, 0], x[8] = torch.linspace(-200, 0, columns), 3e38, torch.linspace(-3e38, 3e38, columns)
        results = each_cpu(lambda x=x: [getattr(ours, op)(x, 1), getattr(ours, op)(x.T, 0).T.contiguous()])
        assert_all_same_bits(results)
        by_row, by_column = next(iter(results.values()))
        assert_same_bits(by_row, by_column)
        torch.testing.assert_close(by_row, getattr(F, op)(x, 1), equal_nan=True)
        assert_same_bits(by_row, torch.tensor(spec.VALUE[op](x.numpy())))


@each_op
def test_a_row_does_not_depend_on_its_neighbours(path, op):
    x = make(70, 30, grad=False)
    whole = getattr(ours, op)(x, 1)
    assert_same_bits(getattr(ours, op)(x[3:4], 1), whole[3:4])
    assert_same_bits(getattr(ours, op)(x.T.contiguous(), 0).T, whole)
    stacked = x.reshape(7, 10, 30).transpose(1, 2).contiguous()
    assert_same_bits(getattr(ours, op)(stacked, 1).transpose(1, 2).reshape(70, 30), whole)


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(OPS), st.lists(st.integers(0, 70), min_size=1, max_size=3), st.integers(0, 2), st.booleans())
def test_any_shape_and_layout_gives_the_bits_of_contiguous_copies(op, shape, dim, transposed):
    dim %= len(shape)
    x = make(*shape, grad=False)
    x = x.transpose(0, -1) if transposed else x[..., ::2]
    leaf, copy = x.requires_grad_(), x.detach().contiguous().requires_grad_()
    y, y_copy = getattr(ours, op)(leaf, dim), getattr(ours, op)(copy, dim)
    assert y.is_contiguous() and y.shape == x.shape
    assert_same_bits(y, y_copy)
    # sum()'s gradient is expanded: every stride 0
    ones = torch.ones(y.shape)
    assert_same_bits(*torch.autograd.grad(y.sum(), leaf), *torch.autograd.grad(y_copy, copy, ones))


@each_op
def test_first_and_second_derivatives_match_finite_differences(path, op):
    for shape, dim in [((4, 5), 1), ((3, 4, 2), 1), ((), 0), ((2, 60), 1)]:
        x = make(*shape, dtype=torch.float64, scale=1)
        assert torch.autograd.gradcheck(lambda x, dim=dim: getattr(ours, op)(x, dim), x)
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: getattr(ours, op)(x, dim), x)
        assert torch.autograd.gradcheck(lambda x, dim=dim: getattr(ours, op)(x, dim).square().sum(), x)


@each_op
def test_create_graph_leaves_first_order_bits_alone(path, op):
    x = make(5, 60)
    loss = getattr(ours, op)(x, 1).square().sum()
    plain = torch.autograd.grad(loss, x, retain_graph=True)
    again = torch.autograd.grad(loss, x, retain_graph=True)
    differentiable = torch.autograd.grad(loss, x, create_graph=True)
    assert_same_bits(plain[0], again[0])
    assert_same_bits(plain[0], differentiable[0])


@each_op
def test_dtype_converts_the_input_first(path, op):
    for x in (
        torch.arange(6).reshape(2, 3),
        make(2, 3).half().detach().requires_grad_(),
        make(2, 3, dtype=torch.float64),
    ):
        y, stock = getattr(ours, op)(x, 1, dtype=torch.float32), getattr(F, op)(x, 1, dtype=torch.float32)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, stock)
        assert_same_bits(y, getattr(ours, op)(x.float(), 1))
        if x.requires_grad:
            gradients = [torch.autograd.grad(t.square().sum(), x)[0] for t in (y, stock)]
            assert gradients[0].dtype == x.dtype
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@each_op
def test_a_missing_dim_is_chosen_with_stock_s_warning(path, op):
    for shape in [(), (3,), (3, 4), (3, 4, 5), (2, 3, 4, 5)]:
        x = make(*shape, grad=False)
        with pytest.warns(UserWarning, match=f"Implicit dimension choice for {op} has been deprecated") as ours_warned:
            y = getattr(ours, op)(x)
        with pytest.warns(UserWarning, match="Implicit dimension") as stock_warned:
            stock = getattr(F, op)(x)
        torch.testing.assert_close(y, stock)
        assert ours_warned[0].filename == stock_warned[0].filename == __file__
        assert stock_warned[0].lineno == ours_warned[0].lineno + 2


@each_op
def test_gradients_only_where_required(path, op):
    x = make(3, 4)
    with torch.no_grad():
        assert not getattr(ours, op)(x, 1).requires_grad
    with torch.inference_mode():
        assert getattr(ours, op)(x, 1).is_inference()
    assert not getattr(ours, op)(x.detach(), 1).requires_grad


@each_op
def test_an_output_changed_in_place_is_noticed(path, op):
    y = getattr(ours, op)(make(3, 4), 1)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_op
def test_registered_operator_and_compilation(path, op):
    x = make(3, 4)
    torch.library.opcheck(getattr(operators(), op), (x, 1))
    torch.library.opcheck(getattr(operators(), op), (x.detach().half(), 1, torch.float32))

    def call(x):
        return getattr(ours, op)(x, -1) + getattr(ours, op)(x.half(), 0, dtype=torch.float32)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same_bits(call(x), compiled(x))
    assert_same_bits(*(torch.autograd.grad(f(x).square().sum(), x)[0] for f in (call, compiled)))


@each_op
def test_functional_transforms_take_the_stock_composition(path, op):
    x, call, stock = make(3, 4, grad=False), getattr(ours, op), getattr(F, op)
    torch.testing.assert_close(torch.func.vmap(lambda row: call(row, 0))(x), stock(x, 1))
    torch.testing.assert_close(*(torch.func.grad(lambda x, f=f: f(x, 1).square().sum())(x) for f in (call, stock)))
    ones = torch.ones_like(x)
    torch.testing.assert_close(*(torch.func.jvp(lambda x, f=f: f(x, 1), (x,), (ones,))[1] for f in (call, stock)))


@each_op
def test_autocast_leaves_the_dtype_alone_on_the_cpu(path, op):
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert getattr(ours, op)(make(3, 4).to(dtype), 1).dtype == getattr(F, op)(make(3, 4).to(dtype), 1).dtype


@each_op
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 0), AttributeError, "expected input to be a Tensor, got list"),
        ((torch.ones(2, 3), 2), IndexError, "expected dim between -2 and 1, got 2"),
        ((torch.ones(()), 1), IndexError, "expected dim between -1 and 0, got 1"),
        ((torch.ones(2, 0), -3), IndexError, "expected dim between -2 and 1, got -3"),
        ((torch.arange(3), 0), NotImplementedError, "expected a floating-point input, .*got torch.int64"),
        ((torch.ones(3), 0, 3, torch.int32), NotImplementedError, "expected a floating-point input, .*got torch.int32"),
        ((torch.ones(3), 0, 3, "float32"), TypeError, "expected dtype to be a torch.dtype, got float32"),
    ],
)
def test_bad_arguments_are_named(path, op, arguments, error, message):
    with pytest.raises(error, match=f"{op}: {message}"):
        getattr(ours, op)(*arguments)


@each_op
def test_module_equals_the_stock_module(path, op):
    module, stock = getattr(nn, MODULES[op])(dim=0), getattr(torch.nn, MODULES[op])(dim=0)
    assert isinstance(module, type(stock)) and repr(module) == repr(stock) and not module.state_dict()
    x = make(5, 4)
    torch.testing.assert_close(module(x), stock(x))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(getattr(nn, MODULES[op])()(x), getattr(torch.nn, MODULES[op])()(x))
    assert caught[0].filename == caught[1].filename and caught[0].lineno == caught[1].lineno
