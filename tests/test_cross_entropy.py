"""cross_entropy: class indices and probabilities, value and gradients, on every instruction set and thread count."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import losses_classification as spec

import pytorch_ext.nn as nn
from pytorch_ext.backends import choice
from pytorch_ext.functional import cross_entropy

REDUCTIONS = ("none", "mean", "sum")
SHAPES = [(1, 1), (5, 3), (64, 10), (130, 67), (3, 1000), (2, 5003), (4, 7, 3), (2, 5, 3, 19), (0, 4), (3, 4, 0)]


def shapes():
    """Every third where kernels are interpreted, operation by operation."""
    return SHAPES[1::3] if choice.name == "triton" else SHAPES


def make(*shape, dtype=torch.float64, grad=True):
    return (2 * torch.randn(shape, dtype=dtype)).requires_grad_(grad)


def indices(shape, ignored=-100):
    """Class indices for an input of that shape, every fifth row ignored."""
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target.view(-1)[4::5] = ignored
    return target


def probabilities(shape, dtype=torch.float64, grad=False):
    return torch.rand(shape, dtype=dtype).requires_grad_(grad)


def options(shape, weighted, smoothing, reduction, dtype=torch.float64):
    weight = torch.rand(shape[1], dtype=dtype) + 0.5 if weighted else None
    return {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}


def rows(t):
    """The input as (rows, classes), as the specification has it."""
    return t.detach().movedim(1, -1).reshape(-1, t.shape[1]).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_results_are_accurate(path, weighted, smoothing, dtype):
    for shape in shapes():
        for reduction in REDUCTIONS:
            given_options = options(shape, weighted, smoothing, reduction)
            weight = given_options.pop("weight")
            for target in (indices(shape), probabilities(shape, grad=True)):
                if shape[0] * target.numel() == 0 and reduction == "mean":
                    continue  # NaN
                logits = make(*shape)
                # The terms of a row's value are at most its largest -log p, those of its gradient a probability.
                largest = -F.log_softmax(logits.detach(), 1).min() if logits.numel() else torch.zeros(())
                most = 3.5 * (largest + 1) * (max(weight) if weighted else 1)
                terms = logits.numel() if target.is_floating_point() or smoothing else target.numel()
                value = most * (terms if reduction == "sum" else shape[1] if reduction == "none" else 3 * shape[1])
                magnitudes = [torch.as_tensor(m) for m in (value, most * 3, most * 3)]
                given = [logits, target] + ([weight] if weighted else [None])

                def ours(x, t, w, o=given_options):
                    return cross_entropy(x, t, w, **o)

                def stock(x, t, w, o=given_options):
                    return F.cross_entropy(x, t, w, **o)

                assert_accurate(ours, stock, given, dtype, magnitudes)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, kind, smoothing, weighted):
    for shape in [(5, 3), (300, 10), (9, 130), (2, 5003), (2, 7, 37), (6000, 2)]:
        for reduction in REDUCTIONS:
            given_options = options(shape, weighted, smoothing, reduction, torch.float32)
            x = make(*shape, dtype=torch.float32)
            x.data[0, 0] = 200.0
            target = indices(shape) if kind == "indices" else probabilities(shape, torch.float32, grad=True)
            leaves = (x, target) if target.requires_grad else (x,)
            # 1 takes the gradient that the forward pass left, another number computes it in the backward pass.
            for scale in (1.0, 0.7) if reduction != "none" else (torch.rand(target.shape[0], *shape[2:]),):

                def run(x=x, target=target, leaves=leaves, scale=scale, o=given_options):
                    loss = cross_entropy(x, target, **o)
                    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.as_tensor(scale).expand_as(loss))]

                results = each_cpu(run)
                assert_all_same_bits(results)
                grad = torch.as_tensor(scale).reshape(-1) if reduction == "none" else torch.as_tensor(scale)
                weight = given_options["weight"]
                common = {**given_options, "grad": grad.numpy(), "weight": None if weight is None else weight.numpy()}
                if kind == "indices":
                    expected = spec.cross_entropy(rows(x), target.reshape(-1).numpy(), **common)
                else:
                    expected = spec.cross_entropy_of_probabilities(rows(x), rows(target), **common)
                loss, *gradients = next(iter(results.values()))
                assert_same_bits(loss.reshape(-1), expected[0].reshape(-1), f"loss of {shape}, {reduction}")
                for name, a, b in zip(("dx", "dtarget"), gradients, expected[1:], strict=False):
                    assert_same_bits(rows(a), b, f"{name} of {shape}, {reduction}")


def test_special_values_have_the_same_bits_everywhere(each_cpu):
    x = make(40, 300, dtype=torch.float32)
    nan, infinity = float("nan"), float("inf")
    with torch.no_grad():
        x[0, 0], x[1, 1], x[2, 2], x[3], x[4], x[5, 7] = nan, infinity, -infinity, 1e-40, -infinity, -0.0
    target = torch.arange(40)

    def run(x=x):
        loss = cross_entropy(x, target, reduction="none", label_smoothing=0.0)
        return [
            loss.detach(),
            *torch.autograd.grad(loss.sum(), x),
            *torch.autograd.grad(cross_entropy(x[6:], target[6:]), x),
        ]

    results = each_cpu(run)
    assert_all_same_bits(results)
    loss, dx, _ = next(iter(results.values()))
    x_stock = x.detach().requires_grad_()
    stock = F.cross_entropy(x_stock, target, reduction="none")
    assert torch.equal(loss.isnan(), stock.isnan()) and torch.equal(loss.isinf(), stock.isinf())
    assert torch.equal(dx.isnan(), torch.autograd.grad(stock.sum(), x_stock)[0].isnan())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4)])
def test_first_and_second_derivatives_match_finite_differences(path, shape, reduction):
    for weighted in (False, True):
        for smoothing in (0.0, 0.2):
            o = options(shape, weighted, smoothing, reduction)
            target = indices(shape)
            assert torch.autograd.gradcheck(lambda x, t=target, o=o: cross_entropy(x, t, **o), (make(*shape),))
            assert torch.autograd.gradgradcheck(lambda x, t=target, o=o: cross_entropy(x, t, **o), (make(*shape),))
            both = (make(*shape), probabilities(shape, grad=True))
            assert torch.autograd.gradcheck(lambda x, t, o=o: cross_entropy(x, t, **o), both)
            assert torch.autograd.gradgradcheck(lambda x, t, o=o: cross_entropy(x, t, **o), both)


def test_create_graph_leaves_first_order_bits_alone(path):
    for target in (indices((9, 30)), probabilities((9, 30), torch.float32, grad=True)):
        for reduction in ("mean", "sum"):
            x = make(9, 30, dtype=torch.float32)
            leaves = (x, target) if target.requires_grad else (x,)
            loss = cross_entropy(x, target, reduction=reduction, label_smoothing=0.1)
            first, again = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
            differentiable = torch.autograd.grad(loss, leaves, create_graph=True)
            for a, b, c in zip(first, again, differentiable, strict=True):
                assert_same_bits(a, b)
                assert_same_bits(a, c)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from(["contiguous", "transposed", "classes last", "every second"]),
    st.sampled_from(REDUCTIONS),
    st.booleans(),
)
def test_any_shape_and_layout_gives_the_bits_of_contiguous_copies(shape, layout, reduction, soft):
    x = make(*shape, dtype=torch.float32, grad=False)
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "classes last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "every second":
        x = make(*shape[:-1], 2 * shape[-1], dtype=torch.float32, grad=False)[..., ::2]
    target = probabilities(shape, torch.float32) if soft else indices(shape)
    copy = x.contiguous().requires_grad_()
    x.requires_grad_()
    loss, expected = (cross_entropy(t, target, reduction=reduction) for t in (x, copy))
    assert_same_bits(loss, expected)
    assert loss.shape == F.cross_entropy(copy.detach(), target, reduction=reduction).shape
    for a, b in zip(torch.autograd.grad(loss.sum(), x), torch.autograd.grad(expected.sum(), copy), strict=True):
        assert_same_bits(a, b)


def test_a_row_does_not_depend_on_its_neighbours_or_its_layout(path):
    x, target = make(64, 129, dtype=torch.float32, grad=False), indices((64, 129))
    whole = cross_entropy(x, target, reduction="none")
    assert_same_bits(cross_entropy(x[7:9], target[7:9], reduction="none"), whole[7:9])
    assert_same_bits(cross_entropy(x[3], target[3], reduction="none"), whole[3])
    assert_same_bits(cross_entropy(x.T[None], target[None], reduction="none")[0], whole)


def test_ignored_rows_count_for_nothing(path):
    x = make(4, 3)
    nothing = torch.full((4,), -100)
    loss = cross_entropy(x, nothing)
    assert loss.isnan() and not torch.autograd.grad(loss, x)[0].any()
    assert cross_entropy(x, nothing, reduction="sum", label_smoothing=0.1) == 0
    assert cross_entropy(x[0], nothing[0]).isnan() and cross_entropy(x[0], nothing[0], reduction="none") == 0
    target = torch.tensor([0, 7, 2, 7])
    torch.testing.assert_close(cross_entropy(x, target, ignore_index=7), F.cross_entropy(x[::2], target[::2]))
    spoiled = x.detach().clone()
    spoiled[1], spoiled[3] = float("nan"), float("inf")
    spoiled.requires_grad_()
    cross_entropy(spoiled, target, ignore_index=7).backward()
    assert not spoiled.grad[1::2].any() and spoiled.grad[::2].any()


def test_empty_inputs_give_what_stock_gives(path):
    for x, target in [
        (make(0, 3), torch.zeros(0).long()),
        (make(0, 3), make(0, 3)),
        (make(2, 3, 0), torch.zeros(2, 0).long()),
    ]:
        for reduction in REDUCTIONS:
            ours, stock = cross_entropy(x, target, reduction=reduction), F.cross_entropy(x, target, reduction=reduction)
            torch.testing.assert_close(ours, stock, equal_nan=True)
            ours.sum().backward()
    for target in (torch.full((4,), -100), make(4, 0)):
        x = make(4, 0)
        torch.testing.assert_close(cross_entropy(x, target), F.cross_entropy(x, target), equal_nan=True)


def test_gradients_only_where_required(path):
    for wanted in [(True, False), (False, True), (True, True)]:
        tensors = [make(5, 4, grad=wanted[0]), probabilities((5, 4), grad=wanted[1])]
        cross_entropy(*tensors).backward()
        assert [t.grad is not None for t in tensors] == list(wanted)
    with torch.no_grad():
        assert not cross_entropy(make(3, 4), indices((3, 4))).requires_grad
    with torch.inference_mode():
        assert cross_entropy(make(3, 4), indices((3, 4))).is_inference()


def test_the_logits_stay_as_they_are_and_a_change_in_place_is_noticed(path):
    leaf, target = make(3, 4), indices((3, 4))
    x = leaf * 1
    before = x.detach().clone()
    loss = cross_entropy(x, target)
    loss.backward(retain_graph=True)
    assert torch.equal(x, before)
    x.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_twice_accumulates(path):
    x = make(3, 4)
    loss = cross_entropy(x, indices((3, 4)))
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_registered_operator_and_compilation(path, soft, reduction):
    x = make(6, 5, dtype=torch.float32)
    target = probabilities((6, 5), torch.float32, grad=True) if soft else indices((6, 5))
    leaves = (x, target) if soft else (x,)
    weight = torch.rand(5)
    code = REDUCTIONS.index(reduction)
    torch.library.opcheck(operators().cross_entropy, (x, target, weight, code, -100, 0.1))
    torch._dynamo.reset()  # every case compiles one and the same function

    def loss_of(x, target):
        return cross_entropy(x, target, weight, reduction=reduction, label_smoothing=0.1)

    loss, compiled = loss_of(x, target), torch.compile(loss_of, fullgraph=True, backend="aot_eager")(x, target)
    assert_same_bits(loss, compiled)
    for a, b in zip(*(torch.autograd.grad(t.sum(), leaves) for t in (loss, compiled)), strict=True):
        assert_same_bits(a, b)


def test_functional_transforms_take_the_stock_composition(path):
    x, target = make(3, 4, grad=False), indices((3, 4))
    gradient = torch.func.grad(lambda x: cross_entropy(x, target))(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: F.cross_entropy(x, target))(x))
    rows_alone = torch.func.vmap(cross_entropy)(x, target.clamp(min=0))
    torch.testing.assert_close(rows_alone, F.cross_entropy(x, target.clamp(min=0), reduction="none"))


def test_autocast_computes_in_float32(path):
    x, target = make(6, 5).bfloat16(), indices((6, 5))
    for weight in (None, torch.rand(5)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(x, target, weight)
            soft = cross_entropy(x, probabilities((6, 5), torch.bfloat16))
        assert loss.dtype == soft.dtype == torch.float32
        assert_same_bits(loss, cross_entropy(x.float(), target, weight))


def test_modules_are_stock_s(path):
    for arguments in [{}, {"weight": torch.rand(4), "ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}]:
        ours, stock = nn.CrossEntropyLoss(**arguments), torch.nn.CrossEntropyLoss(**arguments)
        assert isinstance(ours, torch.nn.CrossEntropyLoss) and repr(ours) == repr(stock)
        assert ours.state_dict().keys() == stock.state_dict().keys()
        x, target = make(6, 4, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 2, 0])
        torch.testing.assert_close(ours(x, target), stock(x, target))


def test_deprecated_flags_and_half_open_options_mean_what_they_mean_in_stock(path):
    x, target = make(6, 4), torch.tensor([0, 1, 2, 3, 2, 0])
    with pytest.warns(UserWarning, match="reduction='sum'"):
        assert cross_entropy(x, target, size_average=False) == cross_entropy(x, target, reduction="sum")
    assert cross_entropy(x, target.to(torch.uint8)) == cross_entropy(x, target)
    assert cross_entropy(x, target, label_smoothing=-1.0) == cross_entropy(x, target)
    one = cross_entropy(x[0], target[:1], reduction="none")
    assert one.shape == () and one == cross_entropy(x[0], target[0])


X, T = torch.ones(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X, T + 1), {}, IndexError, r"class indices in \[0, 3\) or ignore_index -100, got 3"),
        ((X, T - 1), {}, IndexError, r"class indices in \[0, 3\) or ignore_index -100, got -1"),
        ((X, T[:3]), {}, ValueError, r"target \(4,\) for input \(4, 3\), got \(3,\)"),
        ((X, T[:, None]), {}, RuntimeError, r"target \(4,\) for input \(4, 3\), got \(4, 1\)"),
        ((X[0], T[:2]), {}, ValueError, r"target \(\) or \(1,\) for input \(C,\), got \(2,\)"),
        ((X, T.int()), {}, RuntimeError, "target of class indices, torch.int64, got torch.int32"),
        ((X, X.long()), {}, RuntimeError, "target of class probabilities.*got torch.int64"),
        ((X, X), {"ignore_index": 1}, RuntimeError, "no ignore_index with class probabilities, got 1"),
        ((X, T), {"label_smoothing": 1.5}, RuntimeError, "label_smoothing between 0 and 1, got 1.5"),
        ((X, T, torch.ones(4)), {}, RuntimeError, r"weight \(3,\), one for each class, got \(4,\)"),
        ((X, T, torch.ones(3).double()), {}, RuntimeError, "weight of torch.float32 as input, got torch.float64"),
        ((X, T), {"reduction": "all"}, ValueError, "reduction one of none, mean, sum, got all"),
        ((X, [0, 1, 2, 0]), {}, TypeError, "target to be a Tensor, got list"),
        ((X[0, 0], T[:1]), {}, IndexError, r"input \(N, C, ...\) or \(C,\), got \(\)"),
    ],
)
def test_bad_arguments_are_named(path, arguments, keywords, error, message):
    with pytest.raises(error, match=f"cross_entropy: expected {message}"):
        cross_entropy(*arguments, **keywords)
    with pytest.raises(error):
        F.cross_entropy(*arguments, **keywords)
