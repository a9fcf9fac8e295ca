"""scaled_dot_product_attention on the Triton path: the CPU kernel's bits, a bounded part of the scores at a time."""

import itertools

import pytest
import torch
from accuracy import assert_same_bits
from attention_cases import CASES, LONG, case, derivatives, make
from conftest import needs_interpreter, needs_native

import pytorch_ext
import pytorch_ext.functional as F
from pytorch_ext.triton_path import kernels

pytestmark = needs_interpreter
attention = F.scaled_dot_product_attention


@pytest.fixture
def page(monkeypatch):
    """The kernels' module, its scores at a time to be set."""
    module = kernels.scaled_dot_product_attention
    monkeypatch.setattr(module, "SCORES", module.SCORES)
    return module


WAYS = "by blocks", "whole heads", "few scores"


@pytest.fixture(params=WAYS)
def way(request, page, monkeypatch):
    """How the scores are divided."""
    if request.param != "by blocks":
        monkeypatch.setattr(page, "programs_for", lambda *sizes: None)
    if request.param == "few scores":
        page.SCORES = 40
    return request.param


@pytest.fixture
def scores(page, monkeypatch):
    """How many scores were there at a time."""
    counts, to_weights = [], page.scores_to_weights
    monkeypatch.setattr(
        page, "scores_to_weights", lambda s, **hides: counts.append(s.numel()) or to_weights(s, **hides)
    )
    return counts


def with_constant_mask(name):
    inputs, options = case(name, torch.float32)
    return inputs, {key: t.detach() if isinstance(t, torch.Tensor) else t for key, t in options.items()}


@needs_native
@pytest.mark.parametrize("name", [*(name for name in CASES if name != "several chunks"), *LONG])
def test_bits_are_the_cpu_kernel_s_however_few_scores_are_there(way, scores, name):
    inputs, options = with_constant_mask(name)
    with pytorch_ext.backend("native"):
        expected = derivatives(attention, inputs, options, second=False)
    with pytorch_ext.backend("triton"):
        found = derivatives(attention, inputs, options, second=False)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_bits(mine, theirs)
    assert bool(scores) == (way != "by blocks" and all(t.numel() for t in inputs))


@needs_native
@pytest.mark.parametrize("queries", [9, 300])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.zeros(1, 1)}], ids=str)
def test_infinities_and_nan_stand_where_the_cpu_kernel_has_them(way, queries, options):
    """A row of scores that are all -inf is hidden only where there is a mask; a key that is not read can be no NaN."""
    q, k, v = (torch.randn(n, 4) for n in (queries, queries, queries))
    q[2], k[:, 0], v[-1] = torch.tensor([-1.0, 0, 0, 0]), float("inf"), float("nan")
    q[:, 0] = -q[:, 0].abs()
    results = []
    for name in ("native", "triton"):
        with pytorch_ext.backend(name):
            results.append(attention(q, k, v, **options))
    assert_same_bits(*results)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_no_more_scores_than_the_limit_or_one_block_of_a_head(page, scores, options):
    page.SCORES = 1000
    q, k, v = make(3, 4, 20, 8), make(3, 4, 24, 8), make(3, 4, 24, 8)
    with pytorch_ext.backend("triton"):
        attention(q, k, v, **options).sum().backward()
        assert max(scores) == 2 * 20 * (20 if options else 24) and len(scores) == 2 * 6
        scores.clear()
        q, k, v = make(2, 300, 4), make(2, 70, 4), make(2, 70, 4)
        attention(q, k, v, **options).sum().backward()
        assert max(scores) == 256 * 70 and sum(scores) == 2 * 2 * 300 * 70


def test_heads_that_lie_apart_are_not_copied(page):
    q, k, v = (torch.randn(2, n, 3, 4).transpose(1, 2) for n in (5, 7, 7))
    mask = torch.zeros(2, 1, 5, 7)
    heads = page.Heads(q, k, v, mask, False, 0.5)
    for mine, given in ((heads.key, k), (heads.value, v), (heads.mask, mask)):
        assert mine.data_ptr() == given.data_ptr() and mine.shape[:2] == (2, 3)
    assert heads.mask.stride() == (35, 0, 7, 1) and heads.key.stride() == k.stride()


def test_products_of_two_batch_dimensions_take_strides_as_they_are(monkeypatch):
    seen, launch = [], kernels.product.launch
    monkeypatch.setattr(kernels.product, "launch", lambda *a, **o: seen.extend(a[2:4]) or launch(*a, **o))
    a, b = torch.randn(2, 5, 3, 4).transpose(1, 2), torch.randn(2, 4, 3, 6).transpose(1, 2)
    with pytorch_ext.backend("triton"):
        found = F.matmul(a, b)
    assert [t.data_ptr() for t in seen] == [a.data_ptr(), b.data_ptr()]
    torch.testing.assert_close(found, torch.matmul(a, b))


def test_a_value_no_gradient_needs_may_be_changed_in_place():
    q, k, v = make(2, 5, 4, grad=False), make(2, 7, 4, grad=False), make(2, 7, 3)
    with pytorch_ext.backend("triton"):
        changed = v * 1
        y = attention(q, k, changed)
        with torch.no_grad():
            changed.mul_(2)
        (found,) = torch.autograd.grad(y.sum(), v)
        assert_same_bits(found, torch.autograd.grad(attention(q, k, v).sum(), v)[0])
        changed = q * 1
        y = attention(changed, k, v)
        changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


TWICE = {  # small: thousands of launches
    "broadcast batches": ([(2, 1, 3, 2), (2, 3, 2), (1, 2, 3, 2)], {}),
    "causal": ([(4, 2), (3, 2), (3, 2)], {"is_causal": True}),
    "hidden rows": ([(4, 2)] * 3, {"attn_mask": torch.eye(4, dtype=torch.bool) & (torch.arange(4) > 1)}),
    "negative scale": ([(3, 2)] * 3, {"scale": -2.0}),
}


@pytest.mark.parametrize(
    "name, wanted",
    [
        *(("broadcast batches", wanted) for wanted in ((True, False, False), (False, False, True))),
        *((name, (True, True, True)) for name in TWICE),
    ],
)
def test_second_derivatives_match_finite_differences(name, wanted):
    shapes, options = TWICE[name]
    tensors = [make(*shape, dtype=torch.float64, grad=g) for shape, g in zip(shapes, wanted, strict=True)]
    with pytorch_ext.backend("triton"):
        assert torch.autograd.gradgradcheck(lambda *t: attention(*t, **options), tensors, fast_mode=True)


def test_there_is_room_for_a_block_of_each_program_or_some_scores_are_taken_at_a_time(page, launched):
    inputs = make(2, 100, 4), make(2, 70, 4), make(2, 70, 3)
    room = 64 * 128  # of 64 queries, the keys rounded up to whole sums; 4 multiprocessors
    results = []
    for page.SCORES in (4 * 256 * 64, 4 * room, 4 * room - 1):
        with pytorch_ext.backend("triton"):
            results.append(derivatives(attention, inputs, {}, second=False))
    by_blocks = "attention_kernel", "attention_query_gradient_kernel", "attention_key_gradient_kernel"
    assert [launched[name] for name in by_blocks] == [2, 1, 1]  # the keys' programs have room for more
    assert launched["scores_kernel"] == 2 + 1
    for others in results[1:]:
        for mine, theirs in zip(results[0], others, strict=True):
            assert_same_bits(mine, theirs)


@needs_native
@pytest.mark.parametrize("wanted", list(itertools.product((True, False), repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_only_the_wanted_gradients_are_computed(launched, wanted, options):
    inputs = [make(*shape, grad=g) for shape, g in zip([(2, 70, 5), (2, 90, 5), (2, 90, 3)], wanted, strict=True)]
    results = []
    for name in ("native", "triton"):
        with pytorch_ext.backend(name):
            results.append(derivatives(attention, inputs, options, second=False))
    for mine, theirs in zip(*results, strict=True):
        assert_same_bits(mine, theirs)
    assert launched["attention_query_gradient_kernel"] == 1
    assert launched["attention_key_gradient_kernel"] == int(wanted[1] or wanted[2])


def test_what_is_not_covered_is_composed(launched):
    q, k, v = make(2, 5, 4), make(2, 5, 4), make(2, 5, 4)
    mask = make(5, 5)
    with pytorch_ext.backend("triton"):
        learned = attention(q, k, v, mask)
        dropped = attention(q, k, v, dropout_p=1.0)
        assert launched["attention_kernel"] == 0
        constant = attention(q, k, v, mask.detach())
        assert launched["attention_kernel"] == 1
    assert_same_bits(learned, constant)
    assert not dropped.any()
