"""scaled_dot_product_attention: torch's function, composed of this package's operations bit for bit."""

import numpy as np
import pytest
import torch
from accuracy import assert_all_same_bits, assert_same_bits
from attention_cases import CASES, INF, case, causal, derivatives, make
from conftest import needs_native, on_cpu_paths, on_each_path
from spec import scaled_dot_product_attention as spec

import pytorch_ext.functional as ours
from pytorch_ext.ops import scaled_dot_product_attention as page

attention = ours.scaled_dot_product_attention


COMPOSED = {
    "a block and a bit": [(2, 1, 70, 5), (2, 1, 66, 5), (2, 1, 66, 3)],
    "heads": [(2, 2, 300, 20), (2, 2, 280, 20), (2, 2, 280, 30)],
    "several chunks": [(3, 600, 8)] * 3,
}


@on_each_path("name", COMPOSED, interpreted=["a block and a bit"])
def test_the_kernel_that_keeps_no_scores_has_the_bits_of_the_composition(path, monkeypatch, name):
    shapes = COMPOSED[name]
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


@on_each_path("name", CASES, interpreted=["matrices", "broadcast batches", "causal", "hidden rows", "no width"])
def test_strided_inputs_and_gradients_have_the_bits_of_contiguous_ones(path, name):
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
