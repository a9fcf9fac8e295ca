"""MultiheadAttention: torch's own, whatever its arguments, with our products and softmax."""

import copy
import inspect

import pytest
import torch
from accuracy import assert_same_bits
from conftest import on_cpu_paths
from torch import nn

import pytorch_ext
from pytorch_ext import functional, native


def causal(n):
    return torch.triu(torch.full((n, n), -torch.inf), 1)


PADDING = torch.tensor([[False, False, False, True, True], [False] * 5])
# (arguments of the module, arguments of the call)
VARIANTS = {
    "plain": ({}, {}),
    "no_weights": ({}, {"need_weights": False}),
    "weights_of_every_head": ({}, {"average_attn_weights": False}),
    "no_bias": ({"bias": False}, {}),
    "bias_kv": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "other_sizes": ({"kdim": 6, "vdim": 4}, {}),
    "causal_mask": ({}, {"attn_mask": causal(5)}),
    "causal_hint": ({}, {"attn_mask": causal(5), "is_causal": True, "need_weights": False}),
    "boolean_mask": ({}, {"attn_mask": causal(5).bool()}),
    "mask_of_every_head": ({}, {"attn_mask": causal(5).expand(4, 5, 5)}),
    "padding": ({}, {"key_padding_mask": PADDING}),
    "both_masks": ({}, {"key_padding_mask": PADDING.float() * -1e4, "attn_mask": causal(5)}),
}


def pair(**options):
    model = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    return model, stock


def results(model, inputs, call):
    model.zero_grad()
    inputs = [t.clone().requires_grad_() for t in inputs]
    output, weights = model(*inputs, **call)
    loss = output.square().sum() + (0 if weights is None else weights.square().sum())
    loss.backward()
    return [output, weights, *[t.grad for t in inputs], *[p.grad for p in model.parameters()]]


@on_cpu_paths
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_argument_means_what_it_means_to_torch(name, training):
    options, call = VARIANTS[name]
    model, stock = pair(**options)
    inputs = [torch.randn(2, 5, options.get(size, 8)) for size in ("embed", "kdim", "vdim")]
    ours, theirs = results(model.train(training), inputs, call), results(stock.train(training), inputs, call)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs, **call), stock(*inputs, **call), equal_nan=True)


@on_cpu_paths
@pytest.mark.parametrize("shape", [(5, 8), (0, 5, 8)])
def test_a_single_sequence_and_an_empty_batch(shape):
    model, stock = pair()
    x = torch.randn(shape)
    torch.testing.assert_close(model(x, x, x), stock(x, x, x))


def test_the_signature_is_torch_s():
    ours, theirs = pytorch_ext.nn.MultiheadAttention, nn.MultiheadAttention
    assert inspect.signature(ours.forward) == inspect.signature(theirs.forward)
    assert inspect.signature(ours) == inspect.signature(theirs)


@on_cpu_paths
def test_wrong_arguments_have_torch_s_errors():
    model, stock = pair()
    x = torch.randn(2, 5, 8)
    for arguments in [(x[..., :7], x, x), (x, x[0], x), (x,), (x, x, x, torch.ones(3, 3))]:
        raised = []
        for m in (model, stock):
            with pytest.raises(Exception) as caught:  # noqa: B017 (whatever torch raises)
                m(*arguments)
            raised.append((caught.type, str(caught.value).replace("pytorch_ext.", "torch.")))
        assert raised[0][0] is raised[1][0]


@on_cpu_paths
@pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
def test_it_is_made_of_our_functions_bit_for_bit():
    model, _ = pair()
    x = torch.randn(2, 5, 8)
    projected = functional.linear(x.transpose(0, 1), model.in_proj_weight, model.in_proj_bias)
    q, k, v = (t.reshape(5, 4, 4).transpose(0, 1) for t in projected.chunk(3, -1))
    weights = functional.softmax(functional.matmul(q * (1 / 4.0) ** 0.5, k.transpose(1, 2)), -1)
    mixed = functional.matmul(weights, v).transpose(0, 1).reshape(10, 8)
    expected = functional.linear(mixed, model.out_proj.weight, model.out_proj.bias).view(5, 2, 8).transpose(0, 1)
    assert_same_bits(model(x, x, x)[0], expected)


@on_cpu_paths
@pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
@pytest.mark.parametrize("name", ["plain", "causal_mask", "boolean_mask", "bias_kv", "padding"])
def test_asking_for_the_weights_changes_no_bit(name):
    options, call = VARIANTS[name]
    model, _ = pair(**options)
    inputs = [torch.randn(2, 5, 8) for _ in range(3)]
    asked, unasked = (results(model, inputs, call | {"need_weights": need}) for need in (True, False))
    assert_same_bits(asked[0], unasked[0])
    assert unasked[1] is None and torch.isfinite(unasked[2]).all()


@on_cpu_paths
def test_dropout_of_the_weights_has_our_masks():
    model, stock = pair(dropout=0.5)
    x = torch.randn(2, 5, 8)
    torch.manual_seed(1)
    first = model(x, x, x)[1]
    torch.manual_seed(1)
    assert_same_bits(model(x, x, x)[1], first)
    assert 0 < (first == 0).double().mean() < 1 and (stock.eval()(x, x, x)[1] > 0).all()
