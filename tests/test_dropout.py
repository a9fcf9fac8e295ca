"""dropout: the mask and its statistics, gradients, in place, on every path, instruction set and thread count."""

import numpy as np
import pytest
import torch
from accuracy import DTYPES, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import philox as spec

import pytorch_ext.nn as nn
from pytorch_ext.backends import choice
from pytorch_ext.functional import dropout


def keyed(x, p, key):
    return operators().dropout(x, p, torch.tensor(key))


def test_philox_gives_the_published_words():
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    for counter, key, expected in [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ones] * 4, [ones] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:
        assert " ".join(f"{word:08x}" for word in spec.philox(counter, key)) == expected


@pytest.mark.parametrize("key", [0, 1, -1, 0x1234567890ABCDEF, -(2**63)])
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, key):
    for n, p in [(1, 0.5), (33, 0.1), (4097, 0.75), (70001, 1 / 3)]:
        x, g = torch.randn(n, requires_grad=True), torch.randn(n)

        def run(x=x, g=g, p=p):
            y = keyed(x, p, key)
            return [y, *torch.autograd.grad(y, x, g)]

        results = each_cpu(run)
        assert_all_same_bits(results)
        for ours, given_ in zip(next(iter(results.values())), (x, g), strict=True):
            assert_same_bits(ours, spec.dropout(given_.detach().numpy(), p, key), f"{n} elements, p = {p}")


def test_the_words_themselves_are_the_specification_s(path):
    words, key = spec.words(2000, 7), 7
    ones = torch.ones(2000)
    for i in (0, 1, 2, 3, 1001, 1999):  # thresholds just at and just above a word: kept, then dropped
        word = int(words[i])
        assert keyed(ones, word / 2**32, key)[i] != 0
        assert keyed(ones, (word + 1) / 2**32, key)[i] == 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_million_elements_have_the_mean_and_variance_of_the_distribution(path, p):
    n = 1_000_000
    y = dropout(torch.ones(n), p)
    variance = p / (1 - p)
    assert abs(y.double().mean() - 1) < 5 * (variance / n) ** 0.5
    assert set(y.unique().tolist()) == {0.0, float(np.float32(1 / (1 - p)))}
    kept = (y != 0).double() - (1 - p)
    for lag in (1, 2, 3, 4, 64):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 5 * p * (1 - p) / n**0.5


def test_a_seed_gives_one_mask_and_every_call_another(path):
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_has_the_same_mask_and_one_rounding(path, dtype):
    x = torch.randn(5000).to(dtype)
    y = keyed(x, 0.3, 11)
    mask = torch.from_numpy(spec.mask(x.shape, 0.3, 11))
    factor = mask.double() if dtype != torch.float64 else (mask != 0).double() * (1 / 0.7)
    assert y.dtype == dtype
    assert torch.equal(y, (x.double() * factor).to(torch.promote_types(dtype, torch.float32)).to(dtype))


def test_special_values_are_multiplied(path):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, -1.0, 1e-45]).repeat(50)
    y = keyed(x, 0.5, 5)
    assert_same_bits(y, spec.dropout(x.numpy(), 0.5, 5))
    assert y[::6].isnan().all()
    assert_same_bits(keyed(x, 1.0, 5), x * 0)
    assert_same_bits(keyed(x, 0.0, 5), x)
    assert_same_bits(keyed(torch.ones(64), 1 - 2.0**-40, 5), torch.zeros(64))  # a threshold that rounds to 2^32


LAYOUTS = [lambda t: t, lambda t: t.T, lambda t: t[:, ::2], lambda t: t[:1].expand(5, -1), lambda t: t[0, 0]]


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(LAYOUTS))
def test_the_logical_index_decides_in_any_layout(m, n, layout):
    x = layout(torch.randn(m, n)).requires_grad_()
    y = keyed(x, 0.4, 9)
    assert_same_bits(y, spec.dropout(x.detach().numpy(), 0.4, 9))
    assert y.stride() == torch.empty_like(x).stride()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_same_bits(gradient, spec.mask(x.shape, 0.4, 9))


def test_first_and_second_derivatives_match_finite_differences(path):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: keyed(x, 0.3, 1), x)
    assert torch.autograd.gradgradcheck(lambda x: keyed(x, 0.3, 1), x)


def test_backward_uses_the_forward_s_mask_again_and_again(path):
    x = torch.randn(300, requires_grad=True)
    y = dropout(x)
    dropout(x)
    mask = (y != 0) * 2.0
    for create_graph in (False, True, False):
        (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True, create_graph=create_graph)
        assert_same_bits(gradient, mask)


def test_nothing_is_dropped_in_evaluation_and_for_p_0(path):
    x = torch.randn(10, requires_grad=True)
    state = torch.get_rng_state()
    assert dropout(x, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(x, 0, True, True) is x
    empty = torch.empty(0, 3)
    assert dropout(empty) is empty
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(dropout(x, 1), torch.zeros(10) * x)


def test_in_place_overwrites_the_input_and_is_noticed(path):
    x = torch.randn(100, requires_grad=True)
    hidden = x * 1
    version, pointer = hidden._version, hidden.data_ptr()
    torch.manual_seed(1)
    y = dropout(hidden, 0.5, inplace=True)
    torch.manual_seed(1)
    assert y is hidden and hidden._version > version and hidden.data_ptr() == pointer
    assert_same_bits(y, dropout(x, 0.5))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_same_bits(gradient, (y != 0) * 2.0)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        dropout(x, 0.5, inplace=True)
    squares = x * 1
    squares, saved = squares.square(), squares
    dropout(saved, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()


def test_only_the_key_is_saved(path):
    saved = []
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x).sum()
    assert [(t.dtype, t.numel()) for t in saved] == [(torch.int64, 1)]


def test_registered_operator_and_compilation(path):
    x = torch.randn(7, 11, requires_grad=True)
    torch.library.opcheck(operators().dropout, (x, 0.3, torch.tensor(4)))
    torch.library.opcheck(operators().dropout, (x.T, 0.3, torch.tensor(4)))
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    results = []
    for function in (dropout, compiled):
        torch.manual_seed(5)
        y = function(x * 1, 0.3)
        z = function(x * 1, 0.6, True, True)
        results.append([y, z, *torch.autograd.grad((y * z).square().sum(), x)])
    assert_all_same_bits(dict(enumerate(results)))
    assert_same_bits(compiled(x, 0.3, False), x)


def test_two_calls_in_one_compiled_graph_differ(path):
    compiled = torch.compile(lambda x: (dropout(x), dropout(x)), fullgraph=True, backend="aot_eager")
    first, second = compiled(torch.ones(200))
    assert not torch.equal(first, second)


def test_functional_transforms_and_other_dtypes_take_the_stock_function(path):
    x = torch.randn(20)
    gradient = torch.func.grad(lambda x: dropout(x).sum())(x)
    assert set(gradient.tolist()) <= {0.0, 2.0}
    integers = torch.arange(20)
    assert choice.kernels.dropout(integers, 0.5, False, False) is None
    assert dropout(integers, training=False) is integers


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_p_outside_its_range_is_named(path, p):
    for training in (True, False):
        with pytest.raises(
            RuntimeError if p != p else ValueError, match=f"dropout: expected p between 0 and 1, got {p}"
        ):
            dropout(torch.ones(3), p, training)


def test_an_input_that_is_no_tensor_is_named(path):
    with pytest.raises(TypeError, match="dropout: expected input to be a Tensor, got list"):
        dropout([1.0])


def test_module_behaves_as_the_stock_module(path):
    module = nn.Dropout(0.25)
    assert isinstance(module, torch.nn.Dropout) and repr(module) == repr(torch.nn.Dropout(0.25))
    assert not module.state_dict()
    x = torch.ones(1000)
    assert set(module(x).unique().tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert module.eval()(x) is x
    y = nn.Dropout(inplace=True)(x)
    assert y is x and (x == 0).any()
    with pytest.raises(ValueError, match="dropout probability"):
        nn.Dropout(1.5)
