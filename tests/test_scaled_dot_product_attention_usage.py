"""scaled_dot_product_attention under torch's transforms and compilers, in converted models; its errors."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from attention_cases import case, causal, derivatives, make
from conftest import needs_native, on_cpu_paths
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pytorch_ext
import pytorch_ext.functional as ours

attention = ours.scaled_dot_product_attention


@on_cpu_paths
@pytest.mark.parametrize("name", ["heads", "causal", "boolean mask", "floating mask", "grouped heads", "hidden rows"])
def test_compiled_fullgraph_has_the_bits_of_eager(name):
    torch._dynamo.reset()
    inputs, options = case(name, torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    mine, theirs = (derivatives(f, inputs, options, second=False) for f in (compiled, attention))
    for a, b in zip(mine[:4], theirs[:4], strict=True):
        assert_same_bits(a, b)
    torch.testing.assert_close(mine[4:], theirs[4:])


@on_cpu_paths
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


@on_cpu_paths
def test_autocast_gives_stock_s_dtype_and_rounds_as_it_does():
    q, k, v = (make(2, 3, 5, 4) for _ in range(3))
    mask = torch.randn(5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for arguments in [(q, k, v), (q, k.bfloat16(), v), (q, k, v, mask), (q, k, v, mask > 0)]:
            mine, theirs = attention(*arguments), F.scaled_dot_product_attention(*arguments)
            assert mine.dtype == theirs.dtype == torch.bfloat16
            torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.01)
            assert torch.autograd.grad(mine.float().sum(), q)[0].dtype == torch.float32
        assert attention(q.double(), k.double(), v.double()).dtype == torch.float64


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
def test_verify_compares_the_kernel_and_its_gradients():
    report = pytorch_ext.verify(Attention(), torch.randn(2, 30, 8))
    found = [row.result for row in report if row.op == "scaled_dot_product_attention"]
    assert found == ["output", "d query", "d key", "d value"] and report, report.first


@needs_native
def test_the_compile_backend_exchanges_the_call_too():
    torch._dynamo.reset()
    stock = Attention()
    converted = copy.deepcopy(stock)
    pytorch_ext.convert(converted)
    compiled = torch.compile(stock, backend="pytorch_ext", options={"then": "aot_eager"}, fullgraph=True)
    x = torch.randn(2, 5, 8)
    assert_same_bits(compiled(x), converted(x))


@needs_native
def test_compiled_by_inductor_forward_and_backward_are_those_of_eager():
    torch._dynamo.reset()
    q, k, v = (make(1, 2, 40, 8) for _ in range(3))
    results = []
    for function in (attention, torch.compile(attention, fullgraph=True, dynamic=True)):
        y = function(q, k, v, is_causal=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    torch.testing.assert_close(*results)
    assert_same_bits(results[0][0], results[1][0])


@needs_native
def test_export_keeps_our_operators():
    model = Attention()
    pytorch_ext.convert(model)
    x = torch.randn(2, 5, 8)
    program = torch.export.export(model, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "pytorch_ext.scaled_dot_product_attention.default" in targets
    assert "aten.scaled_dot_product_attention.default" not in targets
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


@on_cpu_paths
@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_raise_what_torch_raises(name):
    arguments, options = BAD[name]
    raised = []
    for function in (attention, F.scaled_dot_product_attention):
        with pytest.raises(Exception) as caught:  # noqa: B017 (whatever torch raises)
            function(*arguments, **options)
        raised.append(caught.type)
    assert raised[0] is raised[1]


@on_cpu_paths
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
