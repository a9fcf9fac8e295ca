"""Which calls of a forward are joined, and which would not be the same function any more and are not."""

import importlib.util
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import on_cpu_paths
from torch import nn

import pytorch_ext
from pytorch_ext import functional

pytestmark = on_cpu_paths

OTHER = nn.ReLU()


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()


class Nested(Base):
    def forward(self, x):
        return self.relu(self.fc(x))


class Method(Base):
    def forward(self, x):
        return self.fc(x).tanh() + 1


class InPlace(Base):
    def forward(self, x):
        return F.relu(self.fc(x), inplace=True)


class TwoStatements(Base):
    def forward(self, x):
        h = self.fc(x)
        return torch.sigmoid(h)


class SameName(Base):
    def forward(self, x):
        for _ in range(2):
            x = self.fc(x)
            x = self.relu(x)
        return x


class Helper(Base):
    def block(self, x):
        return F.silu(self.fc(x))

    def forward(self, x):
        return self.block(x)


class InLambda(Base):
    def forward(self, x):
        return (lambda t: F.gelu(self.fc(t)))(x)


class Inherited(Nested):
    pass


class FromElsewhere(Base):
    def forward(self, x):
        return OTHER(self.fc(x))


class Comprehension(Base):
    def forward(self, x):
        return sum(self.relu(self.fc(part)) for part in (x, 2 * x))


class DefaultArgument(Base):
    def forward(self, x, *, f=lambda t: t, **rest):
        """A docstring."""
        return f(self.relu(self.fc(x)))


class PositionalInPlace(Base):
    def forward(self, x):
        return F.relu(self.fc(x), True)


class FromADict(Base):
    def __init__(self):
        super().__init__()
        self.activations, self.chosen = nn.ModuleDict({"gelu": nn.GELU(), "silu": nn.SiLU()}), "silu"

    def forward(self, x):
        return self.activations[self.chosen](self.fc(x))


class Pairs(Base):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([self.fc, nn.Linear(4, 4)])
        self.activations = nn.ModuleList([nn.Tanh(), nn.Sigmoid()])

    def forward(self, x):
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        return x


class ALocalChoice(Base):
    def forward(self, x):
        activation = F.relu if self.training else torch.tanh
        return activation(self.fc(x))


class ReadLater(Base):
    def forward(self, x):
        h = self.fc(x)
        y = self.relu(h)
        return y + h


class ChangedLater(Base):
    def forward(self, x):
        h = self.fc(x)
        y = self.relu(h)
        h += 1
        return y + h


class ReadInAFunction(Base):
    def forward(self, x):
        h = self.fc(x)
        y = self.relu(h)
        return y + (lambda: h)()


class ReadByLocals(Base):
    def forward(self, x):
        h = self.fc(x)
        y = self.relu(h)
        return y + locals()["h"]


class ReadInAHandler(Base):
    def forward(self, x):
        h = x
        try:
            h = self.fc(x)
            h = self.relu(h)
            raise ValueError
        except ValueError:
            return h


class InnerFunction(Base):
    def forward(self, x):
        seen = []

        def inner(h):
            seen.append(lambda: h)
            h = self.fc(x)
            return self.relu(h)

        return inner(x) + seen[0]()


class TwoArguments(Base):
    def forward(self, x):
        return F.softplus(self.fc(x), 2.0)


class NotAnActivation(Base):
    def forward(self, x):
        return torch.exp(self.fc(x))


class Between(Base):
    def forward(self, x):
        x = self.fc(x)
        x = x * 2
        return self.relu(x)


class Reassigned(Base):
    def forward(self, x):
        relu = torch.neg
        return relu(self.fc(x))


JOINED = [Nested, Method, InPlace, TwoStatements, SameName, Helper, InLambda, Inherited, FromElsewhere, Comprehension]
JOINED += [DefaultArgument, PositionalInPlace]
KNOWN_WHEN_CALLED = [FromADict, Pairs, ALocalChoice]  # which activation it is
APART = [ReadLater, ChangedLater, ReadInAFunction, ReadByLocals, ReadInAHandler, InnerFunction, TwoArguments]
APART += [NotAnActivation, Between, Reassigned]


@pytest.fixture
def activations(monkeypatch):
    """The activations of every product of the test."""
    calls, stock = [], functional.linear

    def linear(input, weight, bias=None, *, activation=None):
        calls.append(activation)
        return stock(input, weight, bias, activation=activation)

    monkeypatch.setattr(functional, "linear", linear)
    return calls


@pytest.mark.parametrize("cls", [*JOINED, *KNOWN_WHEN_CALLED, *APART], ids=lambda cls: cls.__name__)
def test_the_function_stays_and_what_may_be_joined_is(cls, activations):
    model, x = cls(), torch.randn(3, 4)
    expected = model(x)
    report = pytorch_ext.convert(model)
    torch.testing.assert_close(model(x), expected)
    assert all(activations) == (cls not in APART) and activations
    assert (report.paths("fused") == ["fc"]) == (cls in JOINED)
    assert (report.paths("rewritten") == [""]) == (cls in [*KNOWN_WHEN_CALLED, Reassigned])
    pytorch_ext.revert(model)
    assert type(model) is cls and torch.equal(model(x), expected)


def test_an_activation_exchanged_later_counts(activations):
    model, x = Nested(), torch.randn(3, 4)
    pytorch_ext.convert(model)
    model.relu = nn.Softplus()
    torch.testing.assert_close(model(x), F.softplus(x @ model.fc.weight.t() + model.fc.bias))
    model.relu = nn.Tanh()
    torch.testing.assert_close(model(x), torch.tanh(x @ model.fc.weight.t() + model.fc.bias))
    model.fc = nn.Identity()
    torch.testing.assert_close(model(x), x.tanh())
    assert activations == [None, "tanh"]


def test_a_function_patched_later_counts(monkeypatch, activations):
    model, x = InPlace(), torch.randn(3, 4)
    pytorch_ext.convert(model)
    monkeypatch.setattr(F, "relu", lambda t, inplace: t - 1)
    torch.testing.assert_close(model(x), x @ model.fc.weight.t() + model.fc.bias - 1)
    assert activations == [None]


def test_errors_point_to_the_user_s_line():
    model = TwoStatements()
    pytorch_ext.convert(model)
    with pytest.raises(RuntimeError) as caught:
        model(torch.randn(3, 5))
    frame = next(
        entry for entry in caught.traceback if entry.name == "forward" and entry.path.name == "test_convert_forward.py"
    )
    assert "torch.sigmoid(h)" in str(frame.statement)


def test_signature_and_documentation_stay():
    import inspect

    model = DefaultArgument()
    before = inspect.signature(model.forward), model.forward.__doc__, type(model).__qualname__
    pytorch_ext.convert(model)
    assert (inspect.signature(model.forward), model.forward.__doc__, type(model).__qualname__) == before
    assert inspect.getsource(model.forward).strip().startswith("def forward(self, x, *, f=lambda t: t, **rest):")


def test_the_class_of_other_objects_is_not_changed():
    first, second = Nested(), Nested()
    pytorch_ext.convert(first)
    assert type(second) is Nested and type(first).__mro__[1] is Nested
    third = Nested()
    pytorch_ext.convert(third)
    assert type(third) is type(first)  # one class for all of them


SOURCE = """
from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu as smooth


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Unknown) -> Unknown:
        return smooth(self.fc(x))
"""


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_future_imports_and_aliases_are_understood(tmp_path):
    path = tmp_path / "with_future_import.py"
    path.write_text(SOURCE)
    model = load(path).Net()
    assert pytorch_ext.convert(model).paths("fused") == ["fc"]
    assert model.forward.__annotations__ == {"x": "Unknown", "return": "Unknown"}


def test_names_that_a_star_brings_are_understood(tmp_path, monkeypatch):
    (tmp_path / "brought.py").write_text("import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n")
    monkeypatch.syspath_prepend(tmp_path)
    for head in ("from brought import *\n", "import torch\nfrom brought import *\n"):
        path = tmp_path / f"with_star_{len(head)}.py"
        body = SOURCE.partition("\n\n\n")[2].replace("x: Unknown) -> Unknown", "x)")
        path.write_text(head + body.replace("smooth(self.fc(x))", "F.gelu(self.fc(torch.tanh(x)))"))
        model = load(path).Net()
        assert pytorch_ext.convert(model).paths("fused") == ["fc"]


def test_a_file_edited_since_its_import_is_not_believed(tmp_path, activations):
    path = tmp_path / "edited.py"
    path.write_text(SOURCE)
    model, x = load(path).Net(), torch.randn(3, 4)
    expected = model(x)
    path.write_text(SOURCE.replace("smooth(self.fc(x))", "smooth(self.fc(x)) * 100"))
    report = pytorch_ext.convert(model)
    assert report.rows[0].done == "left" and "an edited file" in report.rows[0].detail
    torch.testing.assert_close(model(x), expected)
    assert activations == [None]


def test_many_methods_cost_no_time():
    methods = "".join(
        f"    def method{i}(self, a, b):\n        return [a + b for _ in range({i})]\n\n" for i in range(3000)
    )
    seconds = []
    for _ in range(3):  # the least is what nothing has disturbed
        namespace = {"Nested": Nested}
        exec("class Large(Nested):\n" + methods, namespace)
        model = namespace["Large"]()
        start = time.process_time()
        assert pytorch_ext.convert(model).paths("fused") == ["fc"]
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
