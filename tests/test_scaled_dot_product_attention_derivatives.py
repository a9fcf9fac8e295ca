"""scaled_dot_product_attention against torch's: its derivatives, its own samples, 16 bits; finite differences."""

import functools

import pytest
import torch
import torch.nn.functional as F
from accuracy import SUM_TERMS, assert_accurate, unit_roundoff
from attention_cases import CASES, case, derivatives
from conftest import on_each_path
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytorch_ext.functional import scaled_dot_product_attention as attention

LONG_CASE = "several chunks"  # of which the interpreter takes minutes


def stock_in_mathematics(*inputs, **options):
    """torch's composition: its fused operators have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*inputs, **options)


def assert_as_stock(inputs, options):
    """In float64 stock's results; in float32 at most twice stock's errors, or a few roundings of the terms."""
    dtype = inputs[0].dtype
    second = all(t.numel() for t in inputs)  # torch's matmul of nothing has no derivative
    mine, theirs = (derivatives(f, inputs, options, second) for f in (attention, stock_in_mathematics))
    assert [(t is None or (t.dtype, t.shape)) for t in mine] == [(t is None or (t.dtype, t.shape)) for t in theirs]
    if dtype == torch.float64:
        torch.testing.assert_close(mine, theirs)
        return
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = options | {"attn_mask": mask.detach().double().requires_grad_(mask.requires_grad)}
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    inputs = [t.detach() for t in inputs]
    exact = [t.detach() for t in derivatives(stock_in_mathematics, wide, options, second) if t is not None]
    largest = max((float(t.abs().max()) for t in exact if t.numel()), default=0.0)
    if second:  # a score's error is one of the weight's ratio
        largest *= max(1.0, inputs[0].shape[-1] ** 0.5 * float(inputs[0].abs().max() * inputs[1].abs().max()))
    pairs = zip((t for t in mine if t is not None), (t for t in theirs if t is not None), exact, strict=True)
    for result, stock, reference in pairs:
        if reference.numel():
            error, allowed = (float((t.detach() - reference).abs().max()) for t in (result, stock))
            assert error <= max(2 * allowed, SUM_TERMS * unit_roundoff(dtype) * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@on_each_path("name", CASES, interpreted=[name for name in CASES if name != LONG_CASE])
def test_output_gradients_and_second_derivatives_are_torch_s(path, name, dtype):
    assert_as_stock(*case(name, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_generated_sample_of_torch_agrees(path, dtype):
    generated = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    info = next(op for op in generated.op_db if op.name == "nn.functional.scaled_dot_product_attention")
    count = 0
    for sample in info.reference_inputs(path, dtype, requires_grad=True):
        options = dict(sample.kwargs)
        count += 1
        if options.pop("dropout_p", 0.0) == 0.0:
            assert_as_stock([sample.input, *sample.args], options)
    assert count >= 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@on_each_path("name", CASES, interpreted=["causal", "floating mask", "hidden rows", "grouped heads", "no keys"])
def test_16_bits_are_as_accurate_as_stock(path, name, dtype):
    inputs, options = case(name, torch.float64)
    mask = options.pop("attn_mask", None)
    assert_accurate(
        lambda q, k, v, mask: attention(q, k, v, mask, **options),
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask, **options),
        [*inputs, mask],
        dtype,
        magnitudes=[largest_term(t) for t in (inputs[2], *inputs, inputs[2])],
    )


def largest_term(t):
    """What the sums of |terms| of a result are about."""
    return torch.full((), 4.0 + (float(t.detach().abs().max()) if t.numel() else 0.0), dtype=torch.float64)


@on_each_path(
    "name",
    ["heads", "causal", "floating mask", "hidden rows", "grouped heads, masks", "negative scale"],
    interpreted=["floating mask", "hidden rows"],
)
def test_derivatives_match_finite_differences(path, name):
    inputs, options = case(name, torch.float64)
    mask = options.pop("attn_mask", None)
    arguments = inputs if mask is None else [*inputs, mask]
    assert torch.autograd.gradcheck(functools.partial(attention, **options), arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(functools.partial(attention, **options), arguments, fast_mode=True)
