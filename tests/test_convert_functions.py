"""Plain functions that a method calls, and modules that it makes for one call: their kernels are this package's too."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_native
from torch import nn
from torch.nn import CrossEntropyLoss

import pytorch_ext
from pytorch_ext import calls


def attention(query, key, value, mask=None, dropout=None):
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    weights = scores.softmax(dim=-1)
    if dropout is not None:
        weights = dropout(weights)
    return torch.matmul(weights, value), weights


@torch.autocast("cpu", enabled=False)
def layer(linear, x, **options):
    return F.gelu(linear(x), **options)


def through_another(linear, x, **options):
    return layer(linear, x, **options) * 2


def again_and_again(x, times):
    return torch.tanh(x) if times == 0 else again_and_again(torch.sigmoid(x), times - 1)


def without_kernels(x):
    return x + 1


def loss_of(z, labels):
    loss = CrossEntropyLoss(label_smoothing=0.1)
    return loss(z, labels)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(6, 6), nn.Dropout(0.0)


class Attention(Base):
    def forward(self, x):
        y, _ = attention(self.fc(x), x, value=x, dropout=self.drop)
        return without_kernels(y)


class Nested(Base):
    def forward(self, x):
        return through_another(self.fc, x, approximate="tanh")


class Recursive(Base):
    def forward(self, x):
        return again_and_again(self.fc(x), 1)


class MadeForOneCall(Base):
    def forward(self, x):
        activation = nn.Sigmoid()
        return nn.Softmax(dim=-1)(activation(self.fc(x)))


class Loss(Base):
    def forward(self, x):
        return loss_of(self.fc(x), torch.arange(4))


OPERATIONS = {
    Attention: ["linear", "matmul", "softmax", "dropout", "matmul"],
    Nested: ["linear", "gelu_tanh"],
    Recursive: ["linear", "sigmoid", "tanh"],
    MadeForOneCall: ["linear, sigmoid", "softmax"],
    Loss: ["linear", "cross_entropy"],
}


@needs_native
@pytest.mark.parametrize("cls", OPERATIONS, ids=lambda cls: cls.__name__)
def test_their_operations_are_ours_and_the_function_stays(cls):
    model, x = cls(), torch.randn(4, 6)
    stock = copy.deepcopy(model)
    report = pytorch_ext.convert(model)
    assert report.paths("rewritten") == [""]
    torch.testing.assert_close(model(x), stock(x))
    model(x).sum().backward(), stock(x).sum().backward()
    torch.testing.assert_close(model.fc.weight.grad, stock.fc.weight.grad)
    explained = pytorch_ext.explain(model, x, backward=False)
    found = [row.op for row in explained if row.path == "native-cpu"]
    assert found == OPERATIONS[cls]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    pytorch_ext.revert(model)
    assert type(model) is cls


def test_the_report_names_the_calls():
    detail = pytorch_ext.convert(Attention()).rows[0].detail
    assert "attention(self.fc(x), x, value=x, dropout=self.drop)" in detail and "without_kernels" not in detail


def test_the_user_s_function_is_as_it_was_and_an_exchanged_one_counts(monkeypatch):
    model, x = Attention(), torch.randn(4, 6)
    pytorch_ext.convert(model)
    assert calls.ours(attention) is not attention and "__pytorch_ext__" not in attention.__code__.co_freevars
    monkeypatch.setitem(globals(), "attention", lambda *args, **kwargs: (args[1] * 0, None))
    assert torch.equal(model(x), torch.ones(4, 6))


class Keeps(Base):
    def forward(self, x):
        self.activation = nn.ReLU()
        return self.activation(x)


def test_a_module_that_the_object_keeps_is_torch_s():
    model = Keeps()
    pytorch_ext.convert(model)
    model(torch.ones(2, 6))
    assert type(model.activation) is nn.ReLU


class Local(Base):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self.fc(x))


def test_a_function_of_another_function_is_not_looked_into():
    seen = len(calls.TWINS)

    def local(x):
        return torch.tanh(x)

    model = Local(local)
    pytorch_ext.convert(model)
    assert len(calls.TWINS) == seen and model(torch.ones(2, 6)).shape == (2, 6)


@needs_native
def test_a_pickled_model_finds_its_functions_in_another_process(tmp_path):
    model = Attention()
    pytorch_ext.convert(model)
    torch.save((model, torch.ones(2, 6)), tmp_path / "model.pt")
    code = (
        "import torch, pytorch_ext; model, x = torch.load('model.pt', weights_only=False);"
        "rows = pytorch_ext.explain(model, x, backward=False);"
        "print(*[row.op for row in rows if row.path == 'native-cpu'])"
    )
    here = Path(__file__).resolve().parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]; {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == OPERATIONS[Attention], done.stderr
