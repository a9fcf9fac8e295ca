"""scaled_dot_product_attention: torch's function, composed of this package's operations bit for bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import SUM_TERMS, assert_accurate, assert_all_same_bits, assert_same_bits, unit_roundoff
from attention_cases import CASES, INF, case, causal, derivatives, each_case, make
from conftest import needs_native, on_cpu_paths
from spec import scaled_dot_product_attention as spec
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db

import pytorch_ext.functional as ours
from pytorch_ext.ops import scaled_dot_product_attention as page

attention = ours.scaled_dot_product_attention
OPINFO = next(op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")


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


@needs_native  # stock's fused operators have no second derivative
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_output_gradients_and_second_derivatives_are_torch_s(name, dtype):
    assert_as_stock(*case(name, dtype))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_generated_sample_of_torch_agrees(dtype):
    count = 0
    for sample in OPINFO.reference_inputs("cpu", dtype, requires_grad=True):
        options = dict(sample.kwargs)
        count += 1
        if options.pop("dropout_p", 0.0) == 0.0:
            assert_as_stock([sample.input, *sample.args], options)
    assert count >= 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_16_bits_are_as_accurate_as_stock(name, dtype):
    shapes, options = CASES[name]
    inputs = [make(*shape, dtype=torch.float64) for shape in shapes]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        mask = mask.clone().requires_grad_()
    rest = {key: value for key, value in options.items() if key != "attn_mask"}
    assert_accurate(
        lambda q, k, v, mask: attention(q, k, v, mask, **rest),
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask, **rest),
        [*inputs, mask],
        dtype,
        magnitudes=[largest_term(t) for t in (inputs[2], *inputs, inputs[2])],
    )


def largest_term(t):
    """What the sums of |terms| of a result are about."""
    return torch.full((), 4.0 + (float(t.detach().abs().max()) if t.numel() else 0.0), dtype=torch.float64)


@pytest.mark.parametrize("shapes", [[(2, 2, 300, 20), (2, 2, 280, 20), (2, 2, 280, 30)], [(3, 600, 8)] * 3], ids=str)
@needs_native
def test_the_kernel_that_keeps_no_scores_has_the_bits_of_the_composition(monkeypatch, shapes):
    inputs = [make(*shape) for shape in shapes]
    rows, columns = shapes[0][-2], shapes[1][-2]
    for options in (
        {},
        {"is_causal": True, "scale": 0.7},
        {"attn_mask": torch.arange(rows * columns).view(rows, columns) % 5 > 0},
        {"attn_mask": torch.randn(shapes[0][0], *[1] * (len(shapes[0]) - 3), rows, 1)},
    ):
        fused = derivatives(attention, inputs, options, second=False)
        with monkeypatch.context() as patched:
            patched.setattr(page, "in_one_kernel", lambda *arguments: None)
            composed = derivatives(
                lambda *t, options=options: page.composed(
                    *t, options.get("attn_mask"), 0.0, "is_causal" in options, options.get("scale"), False
                ),
                inputs,
                {},
                second=False,
            )
        for mine, theirs in zip(fused, composed, strict=True):
            assert_same_bits(mine, theirs)


@on_cpu_paths
def test_gradients_are_asked_for_one_by_one():
    inputs, options = case("broadcast batches", torch.float32)
    whole = derivatives(attention, inputs, options, second=False)[1:]
    for i in range(3):
        tensors = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        assert_same_bits(derivatives(attention, tensors, options, second=False)[1], whole[i])


@needs_native
def test_the_registered_operator_passes_torch_s_checks():
    q, k, v = (make(2, 5, 4) for _ in range(3))
    operator = torch.ops.pytorch_ext.scaled_dot_product_attention.default
    for arguments in [(q, k, v, None, True, None), (q, k, v, causal(5, 5), False, 0.3)]:
        torch.library.opcheck(operator, arguments)
    for wrong in [(q, k[..., :3], v), (q, k, v[:, :4]), (q, k.double(), v), (q.half(), k.half(), v.half())]:
        with pytest.raises(RuntimeError, match="scaled_dot_product_attention: expected"):
            operator(*wrong, None, False, None)
    with pytest.raises(RuntimeError, match="expected attn_mask to expand to"):
        operator(q, k, v, causal(5, 4), False, None)


# ---- the contract ---------------------------------------------------------------------------------------------------


def as_specified(query, key, value, mask, scale, grad):
    """The specification's output and gradients, head by head."""
    results = [[] for _ in range(5)]
    for h in range(len(query)):
        q, k, v, g = (t[h].detach().numpy() for t in (query, key, value, grad))
        m = None if mask is None else mask.numpy()
        output, weights = spec.forward(q, k, v, m, scale)
        for kept, result in zip(results, (output, *spec.backward(g, q, k, v, weights, scale)), strict=True):
            kept.append(result)
    return [torch.tensor(np.stack(kept)) for kept in results]


MASKS = {
    "no mask": lambda rows, columns: None,
    "boolean": lambda rows, columns: torch.arange(rows * columns).view(rows, columns) % 7 > 2,
    "hidden rows": lambda rows, columns: (torch.arange(rows)[:, None] % 3 > 0).expand(rows, columns),
    "floating": lambda rows, columns: torch.sin(torch.arange(rows * columns, dtype=torch.float32)).view(rows, columns),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(5, 7, 4, 3), (70, 300, 40, 33), (300, 65, 270, 16)], ids=str)
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, shape, mask):
    rows, columns, width, value_width = shape
    query, key, value = make(2, rows, width), make(2, columns, width), make(2, columns, value_width)
    mask, grad = MASKS[mask](rows, columns), torch.randn(2, rows, value_width)
    if mask is not None and mask.is_floating_point():
        mask.requires_grad_()

    def run():
        output = attention(query, key, value, mask, scale=0.3)
        wanted = [query, key, value] + ([mask] if mask is not None and mask.requires_grad else [])
        return [output.detach(), *torch.autograd.grad(output, wanted, grad)]

    results = each_cpu(run)
    assert_all_same_bits(results)
    additive = None
    if mask is not None:
        additive = mask.detach() if mask.requires_grad else torch.zeros(mask.shape).masked_fill(~mask, -INF)
    expected = as_specified(query, key, value, additive, 0.3, grad)
    if len(next(iter(results.values()))) == 5:
        expected[4] = ours_sum(expected[4], (rows, columns))
    for name, mine, theirs in zip(
        ("output", "dquery", "dkey", "dvalue", "dmask"), next(iter(results.values())), expected, strict=False
    ):
        assert_same_bits(mine, theirs, name)


def ours_sum(dscores, shape):
    from spec.matmul import sum_to_shape

    return torch.tensor(sum_to_shape(dscores.numpy(), shape))


@on_cpu_paths
@needs_native
@pytest.mark.parametrize("rows, columns", [(5, 5), (9, 4), (3, 11), (130, 130), (70, 600)])
def test_causal_has_the_bits_of_its_mask(rows, columns):
    shapes = [(2, rows, 8), (2, columns, 8), (2, columns, 8)]
    inputs = [make(*shape) for shape in shapes]
    by_flag = derivatives(attention, inputs, {"is_causal": True}, second=False)
    by_mask = derivatives(attention, inputs, {"attn_mask": causal(rows, columns)}, second=False)
    for mine, theirs in zip(by_flag, by_mask, strict=True):
        assert_same_bits(mine, theirs)


@needs_native
@each_case
def test_strided_inputs_and_gradients_have_the_bits_of_contiguous_ones(name):
    inputs, options = case(name, torch.float32)
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in inputs]
    results = [derivatives(attention, tensors, options, second=False) for tensors in (inputs, strided)]
    for mine, theirs in zip(*results, strict=True):
        assert_same_bits(mine.contiguous(), theirs.contiguous())
    for tensors in (inputs, strided):
        attention(*tensors, **options).sum().backward()
    for a, b in zip(inputs, strided, strict=True):
        assert_same_bits(a.grad, b.grad.contiguous())


@on_cpu_paths
@needs_native
def test_create_graph_leaves_first_order_bits_alone():
    inputs, options = case("floating mask", torch.float32)
    plain = derivatives(attention, inputs, options, second=False)
    for a, b in zip(plain, derivatives(attention, inputs, options), strict=False):
        assert_same_bits(a, b)


@on_cpu_paths
@needs_native
def test_dropout_is_ours_on_the_weights():
    q, k, v = (make(2, 5, 4, grad=False) for _ in range(3))
    torch.manual_seed(4)
    output = attention(q, k, v, dropout_p=0.4)
    torch.manual_seed(4)
    weights = ours.dropout(ours.softmax(ours.matmul(q * 0.5, k.mT), -1), 0.4)
    assert_same_bits(output, ours.matmul(weights, v))
    assert not attention(q, k, v, dropout_p=1.0).any()


@needs_native
def test_derivatives_match_finite_differences():
    for name in ("heads", "causal", "floating mask", "hidden rows", "grouped heads, masks", "negative scale"):
        inputs, options = case(name, torch.float64)
        mask = options.pop("attn_mask", None)

        def call(*tensors, options=options):
            return attention(*tensors, **options)

        arguments = inputs if mask is None else [*inputs, mask]
        assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)
