"""linear_cross_entropy: the loss of a last linear layer in chunks of rows, on every path."""

import itertools

import pytest
import torch
import torch.nn.functional as stock
from accuracy import assert_all_same_bits, assert_same_bits
from agreement import assert_agree, error_of
from conftest import needs_native
from spec.linear_cross_entropy import linear_cross_entropy as specified

import pytorch_ext
import pytorch_ext.functional as F
from pytorch_ext import triton_path
from pytorch_ext.backends import choice
from pytorch_ext.functional import linear_cross_entropy

REDUCTIONS = ("mean", "sum", "none")
# (rows, features, classes and further dimensions); the last ones take more than one chunk of rows.
SHAPES = [(5, 3, (4,)), (300, 7, (6, 2, 3)), (1, 1, (1,)), (0, 3, (4,)), (260, 2, (8200,)), (4200, 1, (1030,))]


@pytest.fixture
def small_chunks(monkeypatch):
    """256 rows in each on the Triton path, whatever their logits, so that small problems have several."""
    if choice.name == "triton":
        monkeypatch.setattr(triton_path.kernels.linear_cross_entropy, "LOGITS_IN_CHUNK", 1)


def shapes():
    return [(5, 3, (4,)), (600, 2, (3, 2)), (0, 3, (4,))] if choice.name == "triton" else SHAPES


class Case:
    """Arguments of one call, and their names for messages."""

    def __init__(self, shape, dtype=torch.float32, soft=False, weighted=False, bias=True, **settings):
        rows, features, sizes = shape
        self.x, self.W = self.leaf(rows, features, dtype=dtype), self.leaf(*sizes, features, dtype=dtype)
        self.bias = self.leaf(*sizes, dtype=dtype) if bias else None
        if soft:
            self.target = torch.rand(rows, *sizes, dtype=dtype)
        else:
            self.target = torch.randint(sizes[0], (rows, *sizes[1:]))
            self.target.view(-1)[4::5] = settings.get("ignore_index", -100)
        weight = torch.rand(sizes[0], dtype=dtype) + 0.5 if weighted else None
        self.settings = {"linear_bias": self.bias, "weight": weight, **settings}
        self.name = f"{shape}, soft {soft}, weighted {weighted}, {settings}"

    @staticmethod
    def leaf(*shape, dtype):
        return (torch.randn(shape, dtype=dtype) / 2).requires_grad_()

    @property
    def leaves(self):
        return [self.x, self.W, *([] if self.bias is None else [self.bias])]

    def loss(self, function=linear_cross_entropy):
        return function(self.x, self.W, self.target, **self.settings)

    def results(self, function=linear_cross_entropy, grad=None):
        loss = self.loss(function)
        return [loss.detach(), *torch.autograd.grad(loss, self.leaves, torch.ones_like(loss) if grad is None else grad)]


def pair(ce, linear):
    """The two functions one after the other, logits and all."""

    def call(x, W, target, *, linear_bias=None, ignore_index=None, **settings):
        logits = linear(x, W.reshape(-1, W.shape[-1]), None if linear_bias is None else linear_bias.reshape(-1))
        settings["ignore_index"] = -100 if ignore_index is None else ignore_index
        return ce(logits.reshape(*x.shape[:-1], *W.shape[:-1]), target, **settings)

    return call


our_pair, stock_pair = pair(F.cross_entropy, F.linear), pair(stock.cross_entropy, stock.linear)


def cases(**common):
    for shape, soft, weighted, reduction in itertools.product(shapes(), (False, True), (False, True), REDUCTIONS):
        if shape[2][0] > 1000 and (soft, weighted) != (False, reduction == "mean"):
            continue  # every large one takes seconds
        for smoothing in (0.0, 0.1)[: 2 if choice.name == "native" else 1]:
            yield Case(shape, soft=soft, weighted=weighted, reduction=reduction, label_smoothing=smoothing, **common)


# ---- bits ------------------------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_two_functions(path, one_thread, small_chunks):
    for case in cases():
        grad = torch.rand(case.loss().shape) if case.settings["reduction"] == "none" else None
        for a, b in zip(case.results(grad=grad), case.results(our_pair, grad), strict=True):
            assert_same_bits(a, b, case.name)


def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu):
    for shape, soft, weighted, reduction in itertools.product(
        [(5, 3, (4,)), (70, 260, (5, 2)), (300, 2, (7,))], (False, True), (False, True), REDUCTIONS
    ):
        case = Case(shape, soft=soft, weighted=weighted, reduction=reduction, label_smoothing=0.1 * weighted)
        for number in (1.0, 0.7):
            sizes = case.loss().shape
            grad = torch.rand(sizes) if reduction == "none" else torch.full(sizes, number)
            results = each_cpu(lambda case=case, grad=grad: case.results(grad=grad))
            assert_all_same_bits(results)
            arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in case.settings.items()}
            x, W, target = (t.detach().numpy() for t in (case.x, case.W, case.target))
            expected = specified(x, W, target, grad=grad.numpy(), **arrays)
            for a, b in zip(next(iter(results.values())), expected, strict=True):
                assert_same_bits(a.reshape(-1), b.reshape(-1), case.name)


@needs_native
@pytest.mark.parametrize("shape", [(300, 3, (40,)), (4200, 1, (3,))])
def test_triton_s_chunks_have_the_bits_of_the_native_ones(shape, monkeypatch):
    if "triton" not in pytorch_ext.available_backends() or torch.cuda.is_available():
        pytest.skip("Triton does not interpret its kernels here")
    monkeypatch.setattr(triton_path.kernels.linear_cross_entropy, "LOGITS_IN_CHUNK", 1)
    case = Case(shape, weighted=True)
    native = case.results(grad=torch.tensor(0.7))
    with pytorch_ext.backend("triton"):
        assert_all_same_bits({"native": native, "triton": case.results(grad=torch.tensor(0.7))})


# ---- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_other_dtypes_agree_with_torch(path, one_thread, dtype):
    for case in itertools.islice(cases(dtype=dtype), 0, None, 5 if choice.name == "triton" else 3):
        if case.x.shape[0] == 0 and case.settings["reduction"] == "mean":
            continue  # NaN
        if case.x.shape[0] > 4000:
            continue  # of one more chunk, and slow
        assert_agree(
            linear_cross_entropy, stock_pair, case.x, case.W, case.target, orders=1, roundings=16, **case.settings
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_of_both_orders_are_right(path, soft, reduction):
    for shape in [(4, 3, (5,)), (3, 2, (4, 2))]:
        case = Case(shape, torch.float64, soft=soft, weighted=True, reduction=reduction, label_smoothing=0.1)

        def call(*leaves, case=case):
            x, W, bias = leaves
            return linear_cross_entropy(x, W, case.target, **{**case.settings, "linear_bias": bias})

        assert torch.autograd.gradcheck(call, case.leaves)
        assert torch.autograd.gradgradcheck(call, case.leaves)


def test_an_input_without_a_batch(path):
    for soft, reduction in itertools.product((False, True), REDUCTIONS):
        target = torch.rand(4) if soft else torch.tensor(2)
        x, W = torch.randn(3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
        assert_agree(linear_cross_entropy, stock_pair, x, W, target, reduction=reduction)


def test_strided_operands_and_gradients(path):
    x = torch.randn(3, 6, dtype=torch.float64).t().requires_grad_()
    W = torch.randn(3, 1, dtype=torch.float64).expand(3, 8).t().requires_grad_()
    target = torch.randint(8, (2, 6))[1]
    assert_agree(linear_cross_entropy, stock_pair, x, W, target, reduction="none", label_smoothing=0.2)
    loss = linear_cross_entropy(x, W, target, reduction="none")
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), (x, W)), torch.autograd.grad(stock_pair(x, W, target, reduction="sum"), (x, W))
    )


def test_a_target_or_a_weight_may_require_a_gradient(path):
    case = Case((5, 3, (4,)), soft=True, weighted=True)
    case.target.requires_grad_()
    assert_agree(linear_cross_entropy, stock_pair, case.x, case.W, case.target, **case.settings)
    case.settings["weight"].requires_grad_()
    assert error_of(case.loss) is error_of(case.loss, stock_pair)


def test_gradients_only_where_required(path):
    for wanted in itertools.product((False, True), repeat=3):
        case = Case((5, 3, (4,)))
        for leaf, needed in zip(case.leaves, wanted, strict=True):
            leaf.requires_grad_(needed)
        loss = case.loss()
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        assert [t.grad is not None for t in case.leaves] == list(wanted)
    with torch.inference_mode():
        assert case.loss().is_inference()


def test_another_gradient_than_1_multiplies_and_the_graph_can_be_retained(path, small_chunks):
    case = Case((600, 3, (5,)))
    loss = case.loss()
    ones = torch.autograd.grad(loss, case.leaves, retain_graph=True)
    for number in (1.0, 3.0, 0.3):
        again = torch.autograd.grad(loss, case.leaves, torch.tensor(number), retain_graph=True)
        for a, b in zip(again, ones, strict=True):
            assert_same_bits(a, b * number)
    torch.testing.assert_close(ones, torch.autograd.grad(case.loss(stock_pair), case.leaves))
    with_graph = torch.autograd.grad(loss, case.leaves, create_graph=True)
    for a, b in zip(with_graph, ones, strict=True):
        assert_same_bits(a, b)


def test_a_change_in_place_is_noticed(path):
    case = Case((5, 3, (4,)))
    loss = case.loss()
    case.W.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- memory ----------------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_logits_are_never_stored_whole(reduction):
    """Most of what torch has allocated for CPU tensors at any time is two chunks of logits."""
    rows, features, classes = 2048, 4, 20_000
    case = Case((rows, features, (classes,)), reduction=reduction)
    logits = rows * classes * 4
    assert peak_of_allocations(lambda: case.results(our_pair)) > 1.9 * logits
    assert peak_of_allocations(case.results) < 0.35 * logits


def peak_of_allocations(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
