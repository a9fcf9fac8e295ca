"""scaled_dot_product_attention: torch's function, composed of this package's operations bit for bit."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import SUM_TERMS, assert_all_same_bits, assert_same_bits, unit_roundoff
from conftest import needs_native
from spec import scaled_dot_product_attention as spec
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db

import pytorch_ext
import pytorch_ext.functional as ours

INF = math.inf
attention = ours.scaled_dot_product_attention
OPINFO = next(op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")


def make(*shape, dtype=torch.float32, grad=True):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def causal(rows, columns):
    return torch.ones(rows, columns, dtype=torch.bool).tril()


# name: shapes of query, key and value, and the other arguments
CASES = {
    "matrices": ([(5, 4), (7, 4), (7, 3)], {}),
    "batches": ([(2, 5, 4), (2, 7, 4), (2, 7, 3)], {}),
    "heads": ([(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], {}),
    "five dimensions": ([(2, 1, 3, 5, 4)] * 3, {}),
    "broadcast batches": ([(2, 1, 5, 4), (3, 7, 4), (1, 3, 7, 4)], {}),
    "several chunks": ([(1, 2, 300, 270), (1, 2, 520, 270), (1, 2, 520, 5)], {}),
    "scale": ([(2, 5, 4)] * 3, {"scale": 0.3}),
    "negative scale": ([(2, 5, 4)] * 3, {"scale": -2.0}),
    "no scale at all": ([(2, 5, 4)] * 3, {"scale": 0.0}),
    "causal": ([(2, 3, 6, 4)] * 3, {"is_causal": True}),
    "causal, longer keys": ([(2, 3, 4), (2, 7, 4), (2, 7, 4)], {"is_causal": True}),
    "causal, longer queries": ([(2, 9, 4), (2, 4, 4), (2, 4, 4)], {"is_causal": True}),
    "boolean mask": ([(2, 3, 6, 4)] * 3, {"attn_mask": causal(6, 6).T.contiguous()}),
    "mask of every head": ([(2, 3, 5, 4)] * 3, {"attn_mask": torch.arange(150).view(2, 3, 5, 5) % 3 > 0}),
    "mask of keys": (
        [(2, 3, 5, 4)] * 3,
        {"attn_mask": (torch.arange(5) % 3 > 0).view(1, 1, 1, 5)},
    ),
    "floating mask": ([(2, 3, 6, 4)] * 3, {"attn_mask": torch.linspace(-3, 3, 36).view(6, 6)}),
    "hidden rows": ([(2, 6, 4)] * 3, {"attn_mask": torch.eye(6, dtype=torch.bool) & (torch.arange(6) > 2)}),
    "all hidden": ([(2, 6, 4)] * 3, {"attn_mask": torch.full((6, 6), -INF)}),
    "grouped heads": ([(2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3)], {"enable_gqa": True}),
    "one key head": ([(2, 6, 5, 4), (2, 1, 7, 4), (2, 1, 7, 3)], {"enable_gqa": True, "is_causal": True}),
    "grouped heads, masks": (
        [(2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
        {"enable_gqa": True, "attn_mask": torch.linspace(-3, 3, 200).view(2, 4, 5, 5)},
    ),
    "grouped heads, one mask": (
        [(2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
        {"enable_gqa": True, "attn_mask": torch.linspace(-3, 3, 50).view(2, 1, 5, 5)},
    ),
    "no queries": ([(2, 0, 4), (2, 5, 4), (2, 5, 4)], {}),
    "no keys": ([(2, 3, 4), (2, 0, 4), (2, 0, 4)], {}),
    "no width": ([(2, 3, 0), (2, 5, 0), (2, 5, 4)], {}),
    "no values": ([(2, 3, 4), (2, 5, 4), (2, 5, 0)], {}),
    "no batch": ([(0, 3, 4), (0, 5, 4), (0, 5, 4)], {}),
}
each_case = pytest.mark.parametrize("name", CASES)


def case(name, dtype):
    shapes, options = CASES[name]
    options = dict(options)
    if "attn_mask" in options and options["attn_mask"].is_floating_point():
        options["attn_mask"] = options["attn_mask"].to(dtype).requires_grad_()
    return [make(*shape, dtype=dtype) for shape in shapes], options


def wave(t, step):
    """A gradient that differs from element to element."""
    return torch.sin(step * torch.arange(t.numel(), device=t.device)).to(t.dtype).view(t.shape)


def derivatives(function, inputs, options, second=True):
    """[output, gradients, derivatives of those gradients]."""
    wanted = [t for t in (*inputs, options.get("attn_mask")) if t is not None and t.requires_grad]
    output = function(*inputs, **options)
    first = torch.autograd.grad(output, wanted, wave(output, 1.0), create_graph=second)
    if not second:
        return [output, *first]
    total = sum((g * wave(g, 2.0)).sum() for g in first)
    return [output, *first, *torch.autograd.grad(total, wanted, allow_unused=True)]


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
@each_case
def test_output_gradients_and_second_derivatives_are_torch_s(name, dtype):
    assert_as_stock(*case(name, dtype))


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
def test_16_bits_are_stock_s_own_results(name, dtype):
    inputs, options = case(name, dtype)
    for mine, theirs in zip(
        *(derivatives(f, inputs, options, second=False) for f in (attention, F.scaled_dot_product_attention)),
        strict=True,
    ):
        assert_same_bits(mine, theirs)


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


@needs_native
def test_create_graph_leaves_first_order_bits_alone():
    inputs, options = case("floating mask", torch.float32)
    plain = derivatives(attention, inputs, options, second=False)
    for a, b in zip(plain, derivatives(attention, inputs, options), strict=False):
        assert_same_bits(a, b)


@needs_native
def test_dropout_is_ours_on_the_weights():
    q, k, v = (make(2, 5, 4, grad=False) for _ in range(3))
    torch.manual_seed(4)
    output = attention(q, k, v, dropout_p=0.4)
    torch.manual_seed(4)
    weights = ours.dropout(ours.softmax(ours.matmul(q * 0.5, k.mT), -1), 0.4)
    assert_same_bits(output, ours.matmul(weights, v))
    assert not attention(q, k, v, dropout_p=1.0).any()


def test_derivatives_match_finite_differences():
    for name in ("heads", "causal", "floating mask", "hidden rows", "grouped heads, masks", "negative scale"):
        inputs, options = case(name, torch.float64)
        mask = options.pop("attn_mask", None)

        def call(*tensors, options=options):
            return attention(*tensors, **options)

        arguments = inputs if mask is None else [*inputs, mask]
        assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


# ---- torch's transforms, compilers and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["heads", "causal", "boolean mask", "floating mask", "grouped heads", "hidden rows"])
def test_compiled_fullgraph_has_the_bits_of_eager(name):
    torch._dynamo.reset()
    inputs, options = case(name, torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    mine, theirs = (derivatives(f, inputs, options, second=False) for f in (compiled, attention))
    for a, b in zip(mine[:4], theirs[:4], strict=True):
        assert_same_bits(a, b)
    torch.testing.assert_close(mine[4:], theirs[4:])


def test_functional_transforms_give_what_stock_gives():
    q, k, v = (make(3, 5, 4, grad=False) for _ in range(3))
    for options in ({}, {"is_causal": True}, {"attn_mask": causal(5, 5)}):

        def results(f, options=options):
            def loss(q):
                return f(q, k, v, **options).square().sum()

            yield torch.func.grad(loss)(q)
            yield torch.func.vmap(lambda a, b, c: f(a, b, c, **options))(q, k, v)
            yield torch.func.vmap(torch.func.grad(lambda q, k: f(q, k, k, **options).sum()))(q, k)
            with sdpa_kernel(SDPBackend.MATH):
                yield torch.func.jvp(lambda q: f(q, k, v, **options), (q,), (torch.ones_like(q),))
                yield torch.func.hessian(lambda q: f(q, k[0], v[0], **options).square().sum())(q[0])

        torch.testing.assert_close(
            list(results(attention)), list(results(F.scaled_dot_product_attention)), rtol=1e-4, atol=1e-5
        )


def test_autocast_takes_stock_s_operator_and_dtype():
    q, k, v = (make(2, 3, 5, 4) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert_same_bits(mine, theirs)


class Attention(nn.Module):
    """Attention as language models write it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


@needs_native
def test_convert_exchanges_the_call_in_a_forward():
    model = Attention()
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    x = torch.randn(2, 5, 8)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in model.qkv(x).chunk(3, -1))
    expected = model.out(attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
    assert_same_bits(model(x), expected)
    torch.testing.assert_close(model(x), stock(x))
    with pytorch_ext.check_reproducible() as found:
        model(x).sum().backward()
    assert not {row.operator for row in found.rows} - {"aten.sum"}, found
    explained = pytorch_ext.explain(model, x)
    assert not [row for row in explained if "scaled_dot_product" in row.op and row.path == "stock"]


@needs_native
def test_export_keeps_our_operators():
    model = Attention()
    pytorch_ext.convert(model)
    x = torch.randn(2, 5, 8)
    program = torch.export.export(model, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "pytorch_ext.softmax.default" in targets and "aten.scaled_dot_product_attention.default" not in targets
    assert_same_bits(program.module()(x), model(x))


def test_the_names_and_defaults_of_the_arguments_are_torch_s():
    parameters = inspect.signature(attention).parameters
    assert list(parameters) == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert [p.default for p in parameters.values()][3:] == [None, 0.0, False, None, False]
    assert [p.kind for p in parameters.values()][6:] == [inspect.Parameter.KEYWORD_ONLY] * 2


x = torch.ones(2, 3, 4, 5)
BAD = {
    "no tensor": ((1, x, x), {}),
    "one dimension": ((x[0, 0, 0], x, x), {}),
    "other dtypes": ((x, x.double(), x), {}),
    "widths that differ": ((x, x[..., :3], x), {}),
    "batches that do not broadcast": ((x, x[:, :2], x), {}),
    "a mask of integers": ((x, x, x, torch.ones(4, 4).int()), {}),
    "a mask of another precision": ((x, x, x, torch.ones(4, 4).double()), {}),
    "a mask that does not fit": ((x, x, x, torch.ones(4, 3)), {}),
    "a mask of more dimensions": ((x, x, x, torch.ones(3, 2, 3, 4, 4)), {}),
    "a mask of one dimension": ((x, x, x, torch.ones(4)), {}),
    "probability above 1": ((x, x, x), {"dropout_p": 1.5}),
    "probability below 0": ((x, x, x), {"dropout_p": -0.5}),
    "heads that do not divide": ((x, x[:, :2], x[:, :2]), {"enable_gqa": True}),
    "integers": ((x.long(), x.long(), x.long()), {}),
}


NOT_CHECKED_BY_STOCK = {"lengths that differ": ((x, x, x[:, :, :2]), {})}  # it reads past the end of the values


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_raise_what_torch_raises(name):
    arguments, options = BAD[name]
    raised = []
    for function in (attention, F.scaled_dot_product_attention):
        with pytest.raises(Exception) as caught:  # noqa: B017 (whatever torch raises)
            function(*arguments, **options)
        raised.append(caught.type)
    assert raised[0] is raised[1]


@pytest.mark.parametrize(
    "name, message",
    [
        ("no tensor", "expected query to be a Tensor, got int"),
        ("one dimension", "expected query, key and value of at least 2 dimensions, got 1, 4 and 4"),
        ("other dtypes", "expected key of torch.float32 as query, got torch.float64"),
        (
            "lengths that differ",
            r"expected key \(..., S, E\) and value \(..., S, Ev\), got \(2, 3, 4, 5\) and \(2, 3, 2, 5\)",
        ),
        ("a mask of integers", "expected attn_mask of bool, float32 or torch.float32, got torch.int32"),
    ],
)
def test_messages_name_the_argument(name, message):
    arguments, options = (BAD | NOT_CHECKED_BY_STOCK)[name]
    with pytest.raises((TypeError, RuntimeError), match=message):
        attention(*arguments, **options)
