"""A converted model leaves Python: ONNX run by onnxruntime, AOTInductor's packages; torch.compile over many sizes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from conftest import needs_native
from torch import nn

import pytorch_ext
from pytorch_ext import native


class Block(nn.Module):
    """A layer of a language model, and a classifier over it."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.gelu = nn.Linear(16, 32), nn.Linear(32, 16), nn.GELU()
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5), nn.LogSoftmax(-1))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(self.gelu(self.up(x)))
        return self.head(x) + (x @ x.mT).softmax(-1).mean()


class Losses(nn.Module):
    """Every loss over one layer, as an evaluation step has them."""

    def __init__(self):
        super().__init__()
        self.layer, self.weighted = nn.Linear(16, 5), nn.CrossEntropyLoss(torch.rand(5), label_smoothing=0.1)
        self.modules_of = nn.ModuleList([nn.CrossEntropyLoss(reduction="none"), nn.NLLLoss()])
        self.elementwise = nn.ModuleList([nn.MSELoss(), nn.BCEWithLogitsLoss(pos_weight=torch.rand(5))])

    def forward(self, x, labels, target):
        z = torch.relu(self.layer(x))
        values = [loss(z, labels) for loss in (self.weighted, *self.modules_of)]
        values += [loss(z, target) for loss in self.elementwise]
        values.append(F.binary_cross_entropy(z.sigmoid(), target))
        return *values, pytorch_ext.functional.linear_cross_entropy(x, self.layer.weight, labels)


def pair():
    """(converted model, stock model, input), for inference."""
    torch.manual_seed(2)
    model = Block().eval()
    stock = copy.deepcopy(model)
    report = pytorch_ext.convert(model)
    assert report.paths("fused") == ["up", "head.0"]
    return model, stock, torch.randn(3, 6, 16)


@pytest.fixture(autouse=True)
def quiet():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("dynamic", [False, True], ids=["one size", "any batch"])
def test_onnx_gets_the_stock_graph_and_onnxruntime_its_results(tmp_path, dynamic):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, stock, x = pair()
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic else {}
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False, **shapes)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}  # nothing but standard operators
    session = onnxruntime.InferenceSession(file)
    for batch in (x, torch.randn(7, 6, 16)) if dynamic else (x,):
        (result,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), stock(batch), rtol=1e-4, atol=1e-5)
    if native.library is not None:  # the export before has changed nothing
        targets = {str(node.target) for node in torch.export.export(model, (x,)).graph.nodes}
        assert "pytorch_ext.linear.default" in targets


class Older(nn.Module):
    """What the older ONNX exporter has an operator for."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.loss = nn.Linear(16, 48), nn.Linear(16, 5), nn.CrossEntropyLoss()

    def forward(self, x, labels):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        y = F.scaled_dot_product_attention(q, k, v)
        z = torch.tanh(self.out(F.gelu(scores + y))).mean(1)
        return self.loss(z, labels) + F.mse_loss(z, x[:, 0, :5])


def test_the_older_onnx_exporter_gets_the_stock_graph_too(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, arguments = Older().eval(), (torch.randn(4, 6, 16), torch.randint(0, 5, (4,)))
    stock, file = copy.deepcopy(model), tmp_path / "model.onnx"
    pytorch_ext.convert(model)
    torch.onnx.export(model, arguments, file, dynamo=False)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    session = onnxruntime.InferenceSession(file)
    (result,) = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), arguments, strict=True)})
    torch.testing.assert_close(torch.from_numpy(result), stock(*arguments).detach(), rtol=1e-4, atol=1e-5)
    if native.library is not None:  # other traces have our operators as before
        assert "pytorch_ext::linear" in str(torch.jit.trace(model, arguments).inlined_graph)


@needs_native
def test_a_package_of_aotinductor_has_the_bits_of_eager(tmp_path):
    model, _, x = pair()
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for batch in (x, torch.randn(9, 6, 16)):
            torch.testing.assert_close(loaded(batch), model(batch))
        plain = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 5), nn.Softmax(-1))
        pytorch_ext.convert(plain)
        program = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "plain.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for batch in (x, torch.randn(9, 6, 16)):
            assert_same_bits(loaded(batch), plain(batch))


@needs_native
def test_a_package_of_aotinductor_takes_losses(tmp_path):
    torch.manual_seed(3)
    model, arguments = Losses(), (torch.randn(7, 16), torch.randint(0, 5, (7,)), torch.rand(7, 5))
    pytorch_ext.convert(model)
    with torch.no_grad():
        program = torch.export.export(model, arguments)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "losses.pt2"))
        found, expected = torch._inductor.aoti_load_package(package)(*arguments), model(*arguments)
    for mine, eager in zip(found, expected, strict=True):
        assert_same_bits(mine, eager)
    assert {node.target for node in program.run_decompositions().graph.nodes if node.op == "call_function"} == {
        getattr(torch.ops.pytorch_ext, name).default
        for name in (
            "activation_forward",
            "cross_entropy_inference",
            "elementwise_loss_inference",
            "linear_cross_entropy_inference",
            "linear_inference",
            "nll_loss_forward",
        )
    }


@needs_native
def test_a_package_of_aotinductor_draws_dropout_s_masks_as_eager_does(tmp_path):
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.5)), torch.randn(3, 16)
    pytorch_ext.convert(model)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "dropout.pt2"))
        loaded, results = torch._inductor.aoti_load_package(package), []
        for call in (model, loaded):
            torch.manual_seed(4)
            results.append([call(x) for _ in range(3)])
    for eager, mine in zip(*results, strict=True):
        assert_same_bits(mine, eager)
    assert not torch.equal(*results[1][:2]) and (results[1][0] == 0).float().mean() > 0.6


class Counted:
    """A backend that counts the graphs it compiles."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.mark.parametrize("training", [False, True])
def test_ten_batch_sizes_recompile_once(training):
    model, stock, _ = pair()
    counted = Counted()
    compiled = torch.compile(model, backend=counted, fullgraph=True)
    for size in (4, 7, 2, 9, 16, 3, 33, 5, 8, 12):
        x = torch.randn(size, 6, 16, requires_grad=training)
        mine, theirs = compiled(x), stock(x)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        if training:
            torch.testing.assert_close(
                *(torch.autograd.grad(y.square().sum(), x)[0] for y in (mine, theirs)), rtol=1e-3, atol=1e-4
            )
    assert counted.graphs == 2  # of the first size, and of every other one


@pytest.mark.parametrize("size", [4, 1])
def test_sequence_lengths_recompile_no_oftener_than_stock(size):
    graphs = []
    for model in pair()[:2]:
        counted = Counted()
        compiled = torch.compile(model, backend=counted, fullgraph=True)
        for length in (6, 9, 4, 17, 30, 2, 5, 12, 7, 21):
            x = torch.randn(size, length, 16)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        graphs.append(counted.graphs)
        torch._dynamo.reset()
    assert graphs[0] <= graphs[1] <= 3
