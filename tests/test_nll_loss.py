"""nll_loss: the negative log likelihood of class indices, on every instruction set and thread count."""

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
from pytorch_ext.functional import nll_loss

REDUCTIONS = ("none", "mean", "sum")
SHAPES = [(1, 1), (5, 3), (300, 10), (5000, 2), (4, 7, 3), (2, 5, 3, 19), (0, 4), (3, 4, 0)]


def shapes():
    """Every third where kernels are interpreted, operation by operation."""
    return SHAPES[1::3] if choice.name == "triton" else SHAPES


def make(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=dtype).log_softmax(min(1, len(shape) - 1)).detach().requires_grad_(grad)


def indices(shape):
    """Class indices for an input of that shape, every fifth row ignored."""
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target.view(-1)[4::5] = -100
    return target


def weights(shape, weighted, dtype=torch.float64):
    return torch.rand(shape[1], dtype=dtype) + 0.5 if weighted else None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_results_are_accurate(path, weighted, dtype):
    for shape in shapes():
        for reduction in REDUCTIONS:
            target, weight, x = indices(shape), weights(shape, weighted), make(*shape)
            if target.numel() == 0 and reduction == "mean":
                continue  # NaN
            largest = torch.as_tensor(8.0 + (-x.detach().min() if x.numel() else 0))
            magnitudes = [largest * (target.numel() if reduction == "sum" else 3), largest]
            assert_accurate(
                lambda x, t, w, r=reduction: nll_loss(x, t, w, reduction=r),
                lambda x, t, w, r=reduction: F.nll_loss(x, t, w, reduction=r),
                [x, target, weight],
                dtype,
                magnitudes,
            )


@pytest.mark.parametrize("weighted", [False, True])
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, weighted):
    for shape in [(5, 3), (300, 10), (2, 7, 37), (6000, 2)]:
        for reduction in REDUCTIONS:
            x, target = make(*shape, dtype=torch.float32), indices(shape)
            weight = weights(shape, weighted, torch.float32)
            grad = torch.rand(target.shape) if reduction == "none" else torch.tensor(0.7)

            def run(x=x, target=target, weight=weight, reduction=reduction, grad=grad):
                loss = nll_loss(x, target, weight, reduction=reduction)
                return [loss.detach(), *torch.autograd.grad(loss, x, grad)]

            results = each_cpu(run)
            assert_all_same_bits(results)
            loss, dx = next(iter(results.values()))
            arrays = [t.detach().movedim(1, -1).reshape(-1, shape[1]).numpy() for t in (x, dx)]
            grads = (grad.reshape(-1) if reduction == "none" else grad).numpy()
            weight = None if weight is None else weight.numpy()
            value, gradient = spec.nll_loss(
                arrays[0], target.reshape(-1).numpy(), weight, reduction=reduction, grad=grads
            )
            assert_same_bits(loss.reshape(-1), value.reshape(-1), f"loss of {shape}, {reduction}")
            assert_same_bits(arrays[1], gradient, f"dx of {shape}, {reduction}")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_derivatives_match_finite_differences(path, reduction):
    for shape in [(5, 3), (2, 3, 4)]:
        for weighted in (False, True):
            target, weight = indices(shape), weights(shape, weighted)

            def loss(x, target=target, weight=weight):
                return nll_loss(x, target, weight, reduction=reduction)

            assert torch.autograd.gradcheck(loss, (make(*shape),))
            assert torch.autograd.gradgradcheck(lambda x, f=loss: f(x.square()), (make(*shape),))


def test_create_graph_leaves_first_order_bits_alone(path):
    x = make(9, 30, dtype=torch.float32)
    loss = nll_loss(x, indices((9, 30))).square()
    plain = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert_same_bits(plain, torch.autograd.grad(loss, x, create_graph=True)[0])


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.booleans(), st.sampled_from(REDUCTIONS))
def test_any_shape_and_layout_gives_the_bits_of_contiguous_copies(shape, classes_last, reduction):
    x = make(*shape, dtype=torch.float32, grad=False)
    if classes_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    else:
        x = x.repeat_interleave(2, -1)[..., ::2]
    copy, target = x.contiguous().requires_grad_(), indices(shape)
    x.requires_grad_()
    loss, expected = (nll_loss(t, target, reduction=reduction) for t in (x, copy))
    assert_same_bits(loss, expected)
    assert loss.shape == F.nll_loss(copy.detach(), target, reduction=reduction).shape
    assert_same_bits(torch.autograd.grad(loss.sum(), x)[0], torch.autograd.grad(expected.sum(), copy)[0])


def test_ignored_rows_and_empty_inputs_give_what_stock_gives(path):
    nothing = torch.full((4,), -100)
    for x, target in [(make(4, 3), nothing), (make(3), nothing[0]), (make(0, 3), nothing[:0]), (make(4, 0), nothing)]:
        for reduction in REDUCTIONS:
            leaves = [x.detach().requires_grad_() for _ in range(2)]
            ours = nll_loss(leaves[0], target, reduction=reduction)
            stock = F.nll_loss(leaves[1], target, reduction=reduction)
            torch.testing.assert_close(ours, stock, equal_nan=True)
            gradients = [torch.autograd.grad(y.sum(), t)[0] for y, t in zip((ours, stock), leaves, strict=True)]
            torch.testing.assert_close(*gradients, equal_nan=True)


def test_an_input_changed_in_place_is_noticed_and_backward_runs_twice(path):
    leaf = make(3, 4)
    x = leaf * 1
    loss = nll_loss(x, indices((3, 4)))
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 2 * first)
    x.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_registered_operator_and_compilation(path, reduction):
    x, target, weight = make(6, 5, dtype=torch.float32), indices((6, 5)), torch.rand(5)
    torch.library.opcheck(operators().nll_loss, (x, target, weight, REDUCTIONS.index(reduction), -100))

    def loss_of(x):
        return nll_loss(x, target, weight, reduction=reduction)

    loss, compiled = loss_of(x), torch.compile(loss_of, fullgraph=True, backend="aot_eager")(x)
    assert_same_bits(loss, compiled)
    assert_same_bits(*(torch.autograd.grad(t.sum(), x)[0] for t in (loss, compiled)))


def test_functional_transforms_take_the_stock_composition(path):
    x, target = make(3, 4, grad=False), torch.tensor([1, 0, 3])
    gradient = torch.func.grad(lambda x: nll_loss(x, target))(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: F.nll_loss(x, target))(x))
    torch.testing.assert_close(torch.func.vmap(nll_loss)(x, target), F.nll_loss(x, target, reduction="none"))


def test_autocast_computes_in_float32(path):
    x = make(6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert nll_loss(x, indices((6, 5)), torch.rand(5)).dtype == torch.float32


def test_modules_are_stock_s_and_flags_mean_the_same(path):
    for arguments in [{}, {"weight": torch.rand(4), "ignore_index": 2, "reduction": "sum"}]:
        ours, stock = nn.NLLLoss(**arguments), torch.nn.NLLLoss(**arguments)
        assert repr(ours) == repr(stock) and ours.state_dict().keys() == stock.state_dict().keys()
        x, target = make(6, 4, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 2, 0])
        torch.testing.assert_close(ours(x, target), stock(x, target))
        assert_same_bits(nll_loss(x, target.to(torch.uint8)), nll_loss(x, target))
        with pytest.warns(UserWarning, match="reduction='none'"):
            assert nll_loss(x, target, reduce=False).shape == (6,)


X, T = torch.ones(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X, T + 1), {}, IndexError, r"class indices in \[0, 3\) or ignore_index -100, got 3"),
        ((X, T[:3]), {}, ValueError, r"target \(4,\) for input \(4, 3\), got \(3,\)"),
        ((X, X.long()), {}, RuntimeError, r"target \(4,\) for input \(4, 3\), got \(4, 3\)"),
        ((X[0], T[:2]), {}, ValueError, r"target \(\) or \(1,\) for input \(C,\), got \(2,\)"),
        ((X, T.float()), {}, RuntimeError, "target of class indices, torch.int64, got torch.float32"),
        ((X[..., None], T[:, None].byte()), {}, RuntimeError, "target of class indices, torch.int64, got torch.uint8"),
        ((X, T, torch.ones(4)), {}, RuntimeError, r"weight \(3,\), one for each class, got \(4,\)"),
        ((X, T, torch.ones(3).double()), {}, RuntimeError, "weight of torch.float32 as input, got torch.float64"),
        ((X, T), {"reduction": "all"}, ValueError, "reduction one of none, mean, sum, got all"),
        ((X, [0, 1, 2, 0]), {}, TypeError, "target to be a Tensor, got list"),
        ((X[0, 0], T[:1]), {}, ValueError, r"input \(N, C, ...\) or \(C,\), got \(\)"),
    ],
)
def test_bad_arguments_are_named(path, arguments, keywords, error, message):
    with pytest.raises(error, match=f"nll_loss: expected {message}"):
        nll_loss(*arguments, **keywords)
    with pytest.raises(error):
        F.nll_loss(*arguments, **keywords)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_second_derivative_of_16_bits_is_rounded_once(path, dtype, reduction):
    target = torch.arange(40) % 3
    for _ in range(10):
        x, weight = torch.randn(40, 3, dtype=dtype, requires_grad=True), torch.rand(3).to(dtype)
        grad, direction = torch.ones((), dtype=dtype, requires_grad=True), torch.rand(40, 3).to(dtype)
        (dx,) = torch.autograd.grad(nll_loss(x, target, weight, reduction=reduction), x, grad, create_graph=True)
        (found,) = torch.autograd.grad(dx, grad, direction)
        weights = weight.double()[target]
        exact = -(weights * direction.double().gather(1, target[:, None])[:, 0]).sum()
        exact /= weights.sum() if reduction == "mean" else 1
        torch.testing.assert_close(found.double(), exact, rtol=0.501 * torch.finfo(dtype).eps, atol=0)
