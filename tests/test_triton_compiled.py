"""torch.compile and torch.export on the Triton path: one graph of its own operators, which has the eager bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_interpreter, needs_native
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import pytorch_ext
import pytorch_ext.functional as F
from pytorch_ext import native, triton_operators

pytestmark = needs_interpreter
ROOT = Path(__file__).resolve().parent.parent
OPERATORS = torch.ops.pytorch_ext_triton
NONE, MEAN, SUM = 0, 1, 2  # at::Reduction


def classes(x):
    return torch.arange(len(x)) % x.shape[1]


# Functions of x (rows, 6), w (5, 6) and b (5,), and the operators of their forward graphs.
FUNCTIONS = {
    "linear": (lambda x, w, b: F.linear(x, w, b, activation="gelu"), ["linear_forward"]),
    "matmul": (lambda x, w, b: F.matmul(x[:, None], w.t()), ["matmul_forward"]),
    "scaled_dot_product_attention": (
        lambda x, w, b: F.scaled_dot_product_attention(x, w, w * 2, torch.ones(1, 5, dtype=torch.bool), scale=0.3),
        ["scaled_dot_product_attention_forward"],
    ),
    "causal attention": (
        lambda x, w, b: F.scaled_dot_product_attention(x[None], w[None], w[None], is_causal=True),
        ["scaled_dot_product_attention_forward"],
    ),
    "softmax": (lambda x, w, b: F.softmax(x.half(), 0, dtype=torch.float32), ["softmax_forward"]),
    "log_softmax": (
        lambda x, w, b: F.nll_loss(F.log_softmax(x, 1), classes(x)),
        ["softmax_forward", "nll_loss_forward"],
    ),
    "activation": (lambda x, w, b: F.silu(F.sigmoid(x)) + F.tanh(x), ["activation_forward"] * 3),
    "dropout": (lambda x, w, b: F.dropout(x, 0.4), ["dropout_key", "dropout_forward"]),
    "mse_loss": (lambda x, w, b: F.mse_loss(x, x * 0.5, reduction="sum"), ["elementwise_loss_inference"]),
    "binary_cross_entropy": (
        lambda x, w, b: F.binary_cross_entropy(F.sigmoid(x), F.sigmoid(x * 2).detach(), w[:1].detach().abs()),
        ["activation_forward"] * 2 + ["elementwise_loss_inference"],
    ),
    "binary_cross_entropy_with_logits": (
        lambda x, w, b: F.binary_cross_entropy_with_logits(x, F.sigmoid(x), pos_weight=w[:1].detach()),
        ["activation_forward", "elementwise_loss_inference"],
    ),
    "cross_entropy": (
        lambda x, w, b: F.cross_entropy(F.linear(x, w, b), classes(x) % 5, b.detach().abs(), label_smoothing=0.1),
        ["linear_forward", "cross_entropy_inference"],
    ),
    "linear_cross_entropy": (
        lambda x, w, b: F.linear_cross_entropy(x, w, classes(x) % 5, linear_bias=b, label_smoothing=0.1),
        ["linear_cross_entropy_forward"],
    ),
    "cross_entropy of probabilities": (
        lambda x, w, b: F.cross_entropy(x, F.softmax(x * 2, 1), reduction="none").sum(),
        ["softmax_forward", "cross_entropy_inference"],
    ),
}


def inputs(rows=7):
    return [torch.randn(*shape).requires_grad_() for shape in ((rows, 6), (5, 6), (5,))]


def is_call(target):
    return len(target) > 1


def recording(graphs):
    """A compiler that keeps the names of a graph's own operators, and runs the graph as it is."""

    def compile_graph(graph, _):
        targets = [str(node.target).split(".") for node in graph.graph.nodes]
        graphs.append([name for library, name, *_ in filter(is_call, targets) if library == "pytorch_ext_triton"])
        assert not [target for target in targets if target[0] == "pytorch_ext"]
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compile_graph, bw_compiler=compile_graph)


def results(function, arguments):
    torch.manual_seed(4)
    y = function(*arguments)
    return [y, *torch.autograd.grad(y.square().sum(), arguments, allow_unused=True)]


def assert_all_same(found, expected, what):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None), f"{what}: result {i}"
        if a is not None:
            assert_same_bits(a, b, f"result {i} of {what}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_graph_of_triton_s_operators_has_the_eager_bits(name):
    function, operators = FUNCTIONS[name]
    torch._dynamo.reset()
    graphs = []
    with pytorch_ext.backend("triton"):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=recording(graphs))
        for rows in (7, 4, 301):  # one graph for any number of rows
            arguments = inputs(rows)
            assert_all_same(results(compiled, arguments), results(function, arguments), name)
    forward, backward = graphs
    # The forward pass of linear_cross_entropy computes its gradients, which the backward pass multiplies.
    assert forward == operators and bool(backward) == (name != "linear_cross_entropy"), graphs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_inside_a_graph_as_it_does_outside(dtype):
    arguments = inputs()

    def function(x, w, b):
        with torch.autocast("cpu", dtype):
            return F.cross_entropy(F.linear(x, w, b), classes(x) % 5)

    with pytorch_ext.backend("triton"):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_all_same(results(compiled, arguments), results(function, arguments), "autocast")


def test_an_exported_program_runs_triton_s_operators():
    class Module(torch.nn.Module):
        def forward(self, x, w, b):
            return F.softmax(F.linear(x, w, b, activation="relu"), 1)

    with pytorch_ext.backend("triton"):
        rows = torch.export.Dim("rows", min=2)
        shapes = ({0: rows}, None, None)
        program = torch.export.export(Module(), tuple(inputs()), dynamic_shapes=shapes, strict=True)
        names = [str(node.target) for node in program.run_decompositions().graph.nodes]
        own = [name.split(".")[1] for name in names if name.startswith("pytorch_ext_triton")]
        assert own == ["linear_inference", "softmax_forward"]
        arguments = inputs(9)
        assert_same_bits(program.module()(*arguments), Module()(*arguments))


def samples():
    """Arguments of every operator, gradients wanted where the operator has derivatives."""
    x, w, b = (t.detach() for t in inputs())
    nd, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    last, probabilities = nd.to(memory_format=torch.channels_last), torch.rand(2, 3, 4, 5)
    g, key, p = torch.tensor(0.7), torch.tensor(4), torch.rand(7, 6)
    both, each = [True, True], torch.randn(7, 6)
    yield from (
        ("linear", x, w, b, "silu"),
        ("linear_forward", x, w, b, "silu"),
        ("linear_forward", x, w, None, "relu"),
        ("linear_inference", nd, torch.rand(4, 5), None, "gelu"),
    )
    yield "linear_backward", torch.randn(7, 5), x, w, torch.rand(7, 5), "relu", [True, False, True]
    yield from (("matmul", nd, nd.mT), ("matmul", x, w[0]), ("matmul_forward", nd, nd[0].mT))
    yield "matmul_backward", torch.randn(7, 5), x, w.t(), both
    q, k, v, bias = nd, torch.randn(3, 6, 5), torch.randn(2, 1, 6, 4), torch.randn(4, 6)
    yield from (
        ("scaled_dot_product_attention", q, k, v, bias, False, None),
        ("scaled_dot_product_attention", q, k, v, None, True, 0.3),
        ("scaled_dot_product_attention_forward", q, k, v, bias > 0, False, 0.3),
    )
    yield "scaled_dot_product_attention_backward", torch.randn(2, 3, 4, 4), q, k, v, bias, False, None, [True] * 3
    yield "scaled_dot_product_attention_backward", q[..., :4], q, k, v, None, True, 2.0, [False, True, False]
    for name, logarithm in (("softmax", False), ("log_softmax", True)):
        yield from ((name, nd, 1), (name, nd.half(), -1, torch.float32), ("softmax_forward", last, 1, logarithm))
        yield "softmax_backward", nd, torch.rand(nd.shape), 2, logarithm
    yield from (("activation", nd.mT, "gelu_tanh"), ("activation_forward", last, "tanh"))
    yield from (
        ("activation_backward", nd, last, "silu"),
        ("dropout", nd.mT, 0.3, key),
        ("dropout_forward", x, 0.3, key),
    )
    yield ("dropout_key",)
    yield "dropout_key", torch.Generator()
    yield from (("mse_loss", x, x[:1] * 2, None, MEAN), ("binary_cross_entropy", p, p.flip(0), p[0], SUM))
    yield "binary_cross_entropy_with_logits", x, p, None, p[:, :1], NONE
    for loss in ("mse_loss", "binary_cross_entropy"):
        yield "elementwise_loss_inference", p, p.flip(0), p, None, loss, SUM
        yield "elementwise_loss_forward", p, p.flip(0), None, None, loss, MEAN, [True, False]
        yield "elementwise_loss_backward", each, p, p.flip(0), p, None, loss, NONE, both
    for t in (nd, last):
        yield "cross_entropy", t, target, torch.rand(3), MEAN, -100, 0.1
        yield "cross_entropy_inference", t, target, torch.rand(3), NONE, -100, 0.1
        yield "cross_entropy_forward", t, target, None, NONE, -100, 0.0, True
        yield "cross_entropy_backward", g, t, target, None, SUM, -100, 0.0, both
        yield "cross_entropy_backward", g, t, probabilities, None, MEAN, -100, 0.0, both
        yield "nll_loss", t, target, None, MEAN, 1
        yield "nll_loss_forward", t, target, None, NONE, 1
        yield "nll_loss_backward", g, t, target, None, SUM, 1
    yield "cross_entropy_backward", g, x, torch.rand(7, 6), None, MEAN, -100, 0.0, both
    yield "linear_cross_entropy", x, w, torch.arange(7) % 5, b, torch.rand(5), MEAN, 1, 0.1
    last_layer = x, torch.randn(3, 2, 6), torch.arange(14).reshape(7, 2) % 3, torch.randn(3, 2), torch.rand(3)
    yield "linear_cross_entropy_inference", *last_layer, MEAN, -100, 0.2, None
    yield "linear_cross_entropy_forward", *last_layer, SUM, -100, 0.0, torch.float64, [True, False, True]
    yield "linear_cross_entropy_backward", torch.randn(7, 2), *last_layer, NONE, 0, 0.1, [True, True, True]


def test_every_operator_passes_torch_s_checks():
    checked = set()
    for name, *arguments in samples():
        checked.add(name)
        if name in triton_operators.STOCK:
            arguments = [
                t.requires_grad_() if i < 2 and isinstance(t, torch.Tensor) and t.is_floating_point() else t
                for i, t in enumerate(t.clone() if isinstance(t, torch.Tensor) else t for t in arguments)
            ]
        checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
        if name != "dropout_key":  # another number in every call
            torch.library.opcheck(getattr(OPERATORS, name).default, arguments, test_utils=checks)
    assert checked == {s.name.partition("::")[2] for s in own_schemas("pytorch_ext_triton")}


def own_schemas(library):
    return [s for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{library}::")]


@needs_native
def test_the_schemas_are_the_native_library_s():
    ours, native_ones = (
        {str(s).partition("::")[2] for s in own_schemas(name)} for name in ("pytorch_ext_triton", "pytorch_ext")
    )
    in_place = {schema for schema in native_ones if "_backward_into(" in schema}  # backward passes call them eagerly
    assert len(in_place) == 2 and ours == native_ones - in_place


@needs_native
@pytest.mark.parametrize("name", ["cross_entropy_forward", "cross_entropy_backward", "nll_loss_backward"])
def test_the_native_library_s_fake_kernels_lay_results_out_as_its_kernels_do(name):
    for arguments in (a for n, *a in samples() if n == name):
        torch.library.opcheck(getattr(torch.ops.pytorch_ext, name).default, arguments, test_utils="test_faketensor")


CODE = """
import torch, pytorch_ext, pytorch_ext.functional as F
from pytorch_ext import native
x, w = torch.arange(12.0).reshape(4, 3).requires_grad_(), torch.ones(4, 3)
loss = lambda x: F.cross_entropy(F.linear(x, w, activation="tanh"), torch.tensor([0, 1, 2, 3]))
assert native.library is None and pytorch_ext.backends.choice.name == "triton"
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
(a,), (b,) = (torch.autograd.grad(f(x), x) for f in (loss, compiled))
assert torch.equal(a, b) and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


def test_no_native_part_is_needed():
    settings = {"PYTORCH_EXT_BACKEND": "triton", "PYTORCH_EXT_NATIVE": "0", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_native
def test_other_choices_take_the_native_operators_or_none():
    def call(x):
        return F.softmax(x, 1)

    for backend, library in (("native", "pytorch_ext"), ("auto", "pytorch_ext"), ("stock", "aten")):
        torch._dynamo.reset()
        seen = []

        def keep(graph, _, seen=seen):
            seen += [str(node.target).split(".")[0] for node in graph.graph.nodes if node.op == "call_function"]
            return make_boxed_func(graph.forward)

        with pytorch_ext.backend(backend):
            compiler = aot_autograd(fw_compiler=keep)
            torch.compile(call, fullgraph=True, backend=compiler)(torch.randn(3, 4))
        assert library in seen or (library == "aten" and native.library), (backend, seen)
