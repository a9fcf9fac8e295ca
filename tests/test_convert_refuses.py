"""What convert leaves alone and why, and that it never leaves a model half converted."""

import copy
import typing
import warnings

import pytest
import torch
from accuracy import assert_same_bits
from converted import Written, reason, snapshot
from torch import nn

import pytorch_ext
from pytorch_ext import conversion
from pytorch_ext.recompile import same_code


@pytest.mark.parametrize("thing", [None, torch.ones(2), torch.relu, nn.Linear, {"a": nn.Linear(2, 2)}])
@pytest.mark.parametrize("function", ["convert", "revert"])
def test_what_is_no_module_is_refused(function, thing):
    with pytest.raises(TypeError, match=f"^{function}: expected a torch.nn.Module, got {type(thing).__name__}$"):
        getattr(pytorch_ext, function)(thing)


def test_a_second_conversion_changes_nothing():
    model = Written()
    pytorch_ext.convert(model)
    before = snapshot(model)
    report = pytorch_ext.convert(model)
    assert snapshot(model) == before
    assert {row.done for row in report.rows} == {"left"} and reason(report, "a")[1] == "already this package's"


def test_layers_of_this_package_are_no_business_of_revert():
    model = nn.Sequential(pytorch_ext.nn.Linear(3, 4), nn.ReLU())
    pytorch_ext.convert(model)
    pytorch_ext.revert(model)
    assert [type(m) for m in model] == [pytorch_ext.nn.Linear, nn.ReLU]


def test_a_subclass_of_a_layer_is_left_with_the_reason():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(3, 3), nn.ReLU())
    stock = copy.deepcopy(model)
    report = pytorch_ext.convert(model)
    assert reason(report, "0") == ("left", "a subclass of Linear may compute something else")
    x = torch.randn(4, 3)
    assert_same_bits(model(x), stock(x))


def test_a_quantised_layer_is_left_with_the_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.ao.nn.qat.Linear(3, 4, qconfig=torch.ao.quantization.default_qconfig), nn.ReLU())
    assert reason(pytorch_ext.convert(model), "0") == ("left", "quantised")


def test_a_forward_replaced_on_the_object_is_left():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[0].forward = lambda x: x + 1
    assert reason(pytorch_ext.convert(model), "0") == ("left", "its forward was replaced on the object")
    assert_same_bits(model(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_a_graph_module_keeps_its_generated_forward():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    x, before = torch.randn(2, 3), snapshot(model)
    expected = model(x)
    report = pytorch_ext.convert(model)
    assert reason(report, "") == ("left", "a GraphModule generates its own forward")
    torch.testing.assert_close(model(x), expected)
    pytorch_ext.revert(model)
    assert snapshot(model) == before


def test_a_class_derived_since_is_left_by_revert_with_the_reason():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    pytorch_ext.convert(model)
    model[0].__class__ = type("Sharded", (type(model[0]),), {})
    report = pytorch_ext.revert(model)
    assert reason(report, "0") == ("left", "its class was changed after its conversion")
    assert type(model[1]) is nn.ReLU and type(model) is nn.Sequential


def test_compiled_models_are_left_with_the_reason():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, torch.ones(1, 3))
    optimised, held = torch.compile(model, backend="eager"), copy.deepcopy(model)
    held.compile(backend="eager")
    for compiled in (scripted, traced, optimised, held, nn.ModuleList([scripted])):
        report = pytorch_ext.convert(compiled)
        assert len(report) == 1 and "compiled already" in report.rows[0].detail
    assert type(model[0]) is nn.Linear and type(held[0]) is nn.Linear


def test_script_refuses_converted_modules_and_says_what_to_do():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    pytorch_ext.convert(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(RuntimeError, match=r"torch.jit.script: expected .*revert\(model\)"):
            torch.jit.script(model)
        pytorch_ext.revert(model)
        assert torch.jit.script(model)(torch.ones(1, 3)).shape == (1, 4)


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("function", ["convert", "revert"])
def test_an_error_midway_leaves_the_model_as_it_was(monkeypatch, function, fails_at):
    model = Written()
    if function == "revert":
        pytorch_ext.convert(model)
    before, exchange, calls = snapshot(model), conversion.exchange_class, []

    def failing(*change):
        calls.append(change)
        if len(calls) == fails_at + 1:
            raise KeyboardInterrupt
        exchange(*change)

    monkeypatch.setattr(conversion, "exchange_class", failing)
    with pytest.raises(KeyboardInterrupt):
        getattr(pytorch_ext, function)(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("function", ["convert", "revert"])
def test_an_error_in_the_report_leaves_the_model_as_it_was(monkeypatch, function):
    model = Written()
    if function == "revert":
        pytorch_ext.convert(model)
    before = snapshot(model)

    def failing(*arguments):
        raise MemoryError

    monkeypatch.setattr(conversion, "Row", failing)
    with pytest.raises(MemoryError):
        getattr(pytorch_ext, function)(model)
    assert snapshot(model) == before


def test_generic_classes_are_derived_from_like_others():
    class Net(nn.Module, typing.Generic[typing.TypeVar("T")]):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return torch.relu(self.fc(x))

    model = Net()
    assert pytorch_ext.convert(model).paths("fused") == ["fc"] and isinstance(model, Net)
    pytorch_ext.revert(model)
    assert type(model) is Net


NO_FILE = """
class Made(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))
"""


def test_source_that_is_not_there_leaves_the_forward_alone():
    names = {"nn": nn, "torch": torch, "__name__": "made"}
    exec(NO_FILE, names)
    model = names["Made"]()
    report = pytorch_ext.convert(model)
    assert reason(report, "")[0] == "left" and "source is not available" in reason(report, "")[1]
    assert reason(report, "fc")[0] == "replaced"
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), (x @ model.fc.weight.t() + model.fc.bias).relu())


def test_a_class_that_watches_its_subclasses_is_not_derived_from():
    made_classes = []

    class Watching(nn.Module):
        def __init_subclass__(cls, **options):
            made_classes.append(cls)

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return torch.relu(self.fc(x))

    model = Watching()
    report = pytorch_ext.convert(model)
    assert not made_classes and type(model) is Watching and reason(report, "fc")[0] == "replaced"


def test_a_string_after_an_inner_function_is_part_of_the_code():
    one, other = (compile(f"f(lambda: 0, '{text}.b')", "", "exec") for text in "ac")
    assert same_code(one, one) and not same_code(one, other)
