"""explain: the path of every operation and the reason for it."""

import collections
import copy
import dataclasses

import pytest
import torch
from converted import made
from torch import nn

import pytorch_ext
from pytorch_ext import native

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")


def rows(report, path=None):
    return [(row.layer, row.op) for row in report if path is None or row.path == path]


def test_a_converted_model_s_kernels_and_what_is_left_to_torch():
    model, arguments = made("image")
    pytorch_ext.convert(model)
    weights = copy.deepcopy(model.state_dict())
    report = pytorch_ext.explain(model, arguments)
    ours = rows(report, "native-cpu")
    for expected in [("layers.0.fc1", "linear"), ("head.0", "linear, relu"), ("head.0", "linear_backward")]:
        assert expected in ours
    conv = next(row for row in report if row.op == "aten.convolution")
    assert (conv.layer, conv.path, conv.why) == ("conv", "stock", "this package has no such kernel")
    assert all(row.dtype and row.bytes > 0 and row.microseconds >= 0 for row in report)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)  # BatchNorm's statistics too


def test_backward_passes_bear_the_names_of_their_layers():
    """Those too that need no weight, as the first layer's: its input has no gradient."""
    model = pytorch_ext.nn.Sequential(*(pytorch_ext.nn.Linear(5, 5) for _ in range(3)))
    report = pytorch_ext.explain(model, torch.randn(4, 5))
    assert [layer for layer, op in rows(report) if op == "linear_backward"] == ["2", "1", "0"]


def test_bytes_are_those_of_arguments_and_results():
    model = pytorch_ext.nn.Linear(3, 5)
    (row,) = [row for row in pytorch_ext.explain(model, torch.randn(4, 3)) if row.op == "linear"]
    assert row.bytes == 4 * (4 * 3 + 5 * 3 + 5 + 4 * 5) and row.dtype == "float32"


def test_inference_has_no_backward_rows():
    model = pytorch_ext.nn.Linear(3, 5)
    assert rows(pytorch_ext.explain(model, torch.randn(4, 3), backward=False)) == [("", "linear")]
    with torch.no_grad():
        assert rows(pytorch_ext.explain(model, torch.randn(4, 3))) == [("", "linear")]


def test_a_model_that_was_not_converted_is_told_so():
    report = pytorch_ext.explain(nn.Linear(3, 5), torch.randn(4, 3))
    assert report.rows[0].op == "aten.addmm" and report.rows[0].why == "called past this package"


class Product(nn.Module):
    def forward(self, a, b):
        return pytorch_ext.functional.matmul(a, b)


def test_the_reason_of_a_call_that_the_kernels_do_not_take():
    layer, x = pytorch_ext.nn.Linear(3, 5), torch.randn(4, 3)

    def why(model, batch):
        row = pytorch_ext.explain(model, batch).rows[0]
        assert row.path == "stock"
        return row.why

    with pytorch_ext.backend("stock"):
        assert why(layer, x) == "the backend is stock"
    assert why(Product(), (x.int(), x.int().t())) == "no kernel for int32"

    class Own(torch.Tensor):
        pass

    assert why(layer, x.as_subclass(Own)) == "a tensor subclass: Own"
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert why(layer, x) == "torch's flags ask for TF32 or bfloat16 products"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_losses_take_class_indices_and_name_their_path():
    logits, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    report = pytorch_ext.explain(pytorch_ext.nn.CrossEntropyLoss(), (logits, target))
    assert ("", "cross_entropy") in rows(report, "native-cpu")
    report = pytorch_ext.explain(pytorch_ext.nn.MSELoss(), (logits, torch.zeros(4, 3)))
    assert [op for _, op in rows(report)].count("mse_loss") == 1


def test_a_product_that_a_table_leaves_to_stock_is_said_to_be_there():
    layer, x = pytorch_ext.nn.Linear(1024, 1024), torch.randn(64, 1024)
    is_left = native.library.is_stock_product(x.bfloat16(), 64 << 20)
    for report in (
        pytorch_ext.explain(copy.deepcopy(layer).bfloat16(), x.bfloat16()),
        pytorch_ext.explain(Product(), (x.bfloat16(), layer.weight.detach().bfloat16().t().requires_grad_())),
        explained_under_autocast(layer, x),
    ):
        found = [row for row in report if row.op.removesuffix("_backward") in ("linear", "matmul")]
        assert len(found) == 2 and {row.path for row in found} == {"stock (table)" if is_left else "native-cpu"}
    small = pytorch_ext.explain(pytorch_ext.nn.Linear(4, 4).bfloat16(), x[:2, :4].bfloat16(), backward=False)
    assert [row.path for row in small] == ["native-cpu"]
    assert {row.path for row in pytorch_ext.explain(layer, x)} == {"native-cpu"}


def explained_under_autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return pytorch_ext.explain(layer, x)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    name: str = ""


class OfOneDict(nn.Module):
    """Takes a batch as trainers hand it over, and returns what pytree does not know."""

    def __init__(self):
        super().__init__()
        self.fc = pytorch_ext.nn.Linear(4, 3)

    def forward(self, batch, scale=1.0):
        return Output(self.fc(batch["x"]) * scale)


@pytest.mark.parametrize("batch", ["the dict", "by name", "in a tuple", "another mapping"])
def test_a_batch_may_be_one_dict_or_named_arguments(batch):
    data = {"x": torch.randn(2, 4)}
    given = {
        "the dict": data,
        "by name": {"batch": data, "scale": 2.0},
        "in a tuple": (data, 2.0),
        "another mapping": collections.UserDict(batch=data),
    }[batch]
    assert [op for _, op in rows(pytorch_ext.explain(OfOneDict(), given), "native-cpu")] == [
        "linear",
        "linear_backward",
    ]
    report = pytorch_ext.verify(OfOneDict(), given)
    assert report and {"output", "d weight", "d fc.weight"} <= {row.result for row in report}


def test_the_tensors_of_a_batch_get_no_gradient():
    leaf = torch.randn(2, 3, requires_grad=True)
    for batch in (leaf, leaf * 2):
        explained = pytorch_ext.explain(pytorch_ext.nn.Linear(3, 5), batch)
        assert ("", "linear_backward") in rows(explained) and pytorch_ext.verify(nn.Linear(3, 5), batch)
    assert leaf.grad is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_and_parts_of_it_are_not():
    scripted = torch.jit.script(nn.Linear(3, 5))
    with pytest.raises(TypeError, match="^explain: expected a module of Python code, got RecursiveScriptModule$"):
        pytorch_ext.explain(scripted, torch.randn(2, 3))
    assert pytorch_ext.verify(scripted, torch.randn(2, 3)).summary() == "no kernel of this package ran"


def test_the_triton_path_s_backward_is_named():
    if "triton" not in pytorch_ext.available_backends():
        pytest.skip("Triton cannot run here")
    with pytorch_ext.backend("triton"):
        model = pytorch_ext.nn.Sequential(pytorch_ext.nn.Linear(3, 5), nn.GELU(), pytorch_ext.nn.Softmax(-1))
        report = pytorch_ext.explain(model, torch.randn(4, 3))
    assert rows(report, "triton, interpreted")[-2:] == [("2", "softmax_backward"), ("0", "linear_backward")]
    assert {row.path for row in report} == {"triton, interpreted"}


def test_the_triton_path_is_named():
    if "triton" not in pytorch_ext.available_backends():
        pytest.skip("Triton cannot run here")
    with pytorch_ext.backend("triton"):
        report = pytorch_ext.explain(pytorch_ext.nn.Linear(3, 5), torch.randn(4, 3), backward=False)
    assert [row.path for row in report] == ["triton, interpreted"]
    assert "triton, interpreted: 1 operations" in str(report)
