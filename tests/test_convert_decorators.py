"""Methods that a decorator wraps: what it wraps is looked into where it is a plain function, the decorator stays."""

import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from converted import reason
from torch import nn

import pytorch_ext
from pytorch_ext import functional


def counted(function):
    """A decorator with names of its own, a default and an attribute."""

    @functools.wraps(function)
    def with_count(self, *args, times=1, **kwargs):
        self.count += 1
        return times * function(self, *args, **kwargs)

    with_count.of_user = True
    return with_count


class Base(nn.Module):
    count = 0

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)


class Autocast(Base):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return F.relu(self.fc(x))


class NoGrad(Base):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(self.fc(x))


class NoGradWithoutACall(Base):
    @torch.no_grad
    def forward(self, x):
        return F.relu(self.fc(x))


class Several(Base):
    @torch.inference_mode()
    @counted
    @torch.amp.autocast("cpu", enabled=False)
    def forward(self, x):
        return F.relu(self.fc(x))


class InABlock(Base):
    @counted
    def block(self, x):
        return F.relu(self.fc(x))

    def forward(self, x):
        return self.block(x, times=3) + self.count


class WithSuper(Autocast):
    @torch.enable_grad()
    def forward(self, x):
        return super().forward(x) + torch.tanh(self.fc(x))


class Compiled(Base):
    @torch.compile(backend="eager")
    def forward(self, x):
        return F.relu(self.fc(x))


class Elsewhere(Base):
    """The decorator keeps the function where its own function does not see it."""

    def kept(function, registry={}):  # noqa: B006
        registry[0] = function

        @functools.wraps(function)
        def looked_up(self, *args):
            return registry[0](self, *args)

        return looked_up

    @kept
    def forward(self, x):
        return F.relu(self.fc(x))


@pytest.mark.parametrize("cls", [Autocast, NoGrad, NoGradWithoutACall, Several, InABlock, WithSuper])
def test_a_decorated_method_is_fused_inside_its_decorators(cls, monkeypatch):
    torch.manual_seed(0)
    model, x, activations = cls(), torch.randn(3, 4), []
    expected, wrapped = model(x), vars(cls)["forward"].__wrapped__ if cls is not InABlock else None
    report, linear = pytorch_ext.convert(model), functional.linear

    def watched(*arguments, activation=None):
        activations.append(activation)
        return linear(*arguments, activation=activation)

    monkeypatch.setattr(functional, "linear", watched)
    assert report.paths("fused") == ["fc"] and not report.paths("left")
    model.count = 0
    found = model(x)
    assert activations == ([None, "tanh"] if cls is WithSuper else ["relu"])  # super() is the user's class
    torch.testing.assert_close(found, expected)
    assert (found.dtype, found.requires_grad, found.is_inference()) == (
        expected.dtype,
        expected.requires_grad,
        expected.is_inference(),
    )
    assert model.count == (cls in (Several, InABlock))
    if wrapped is not None:
        assert vars(cls)["forward"].__wrapped__ is wrapped  # the user's class is as it was
        assert getattr(model.forward, "of_user", False) == getattr(cls.forward, "of_user", False)
    copy = pickle.loads(pickle.dumps(model))
    copy.count = 0
    assert_same_bits(copy(x), found)
    pytorch_ext.revert(model)
    assert type(model) is cls


@pytest.mark.parametrize("cls", [Autocast, NoGrad, WithSuper])
def test_it_is_one_graph_to_a_compiler(cls):
    model, x = cls(), torch.randn(3, 4)
    pytorch_ext.convert(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("cls", [Compiled, Elsewhere])
def test_what_a_decorator_does_not_hold_or_has_compiled_is_left_with_the_reason(cls):
    model, x = cls(), torch.randn(3, 4)
    expected = model(x)
    report = pytorch_ext.convert(model)
    done, detail = reason(report, "")
    assert type(model) is cls and done == "left" and "a decorator" in detail
    torch.testing.assert_close(model(x), expected)
