"""check_reproducible: it names what runs outside the numerics contract, and nothing else."""

import pytest
import torch
from conftest import on_cpu_paths
from converted import made
from torch import nn

import pytorch_ext
from pytorch_ext import functional, optim, reproducibility

pytestmark = on_cpu_paths


def training(model, x, optimizer, clip):
    loss = functional.cross_entropy(model(x), torch.arange(len(x)) % 3)
    loss.backward()
    clip(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def perceptron():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    pytorch_ext.convert(model)
    return model


def names(found):
    return {row.operator for row in found}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_training_step_of_our_operators_is_inside(name):
    model, x = perceptron(), torch.randn(5, 6)
    optimizer = getattr(optim, name)(model.parameters(), lr=0.1)
    with pytorch_ext.check_reproducible() as found:
        training(model, x, optimizer, optim.clip_grad_norm_)
    assert found and len(found) == 0 and found.inside > 5
    assert "inside the contract" in str(found)


def test_stock_optimisers_and_clipping_are_named():
    model = perceptron()
    adam = torch.optim.Adam(model.parameters())
    with pytorch_ext.check_reproducible() as found:
        training(model, torch.randn(5, 6), adam, nn.utils.clip_grad_norm_)
    assert not found
    assert {"aten.addcdiv_", "aten.addcmul_", "aten.lerp_.Scalar"} <= names(found)
    assert any("norm" in name for name in names(found))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}])
def test_optimisers_over_lists_are_seen(options):
    model, x = perceptron(), torch.randn(5, 6)
    adam = torch.optim.Adam(model.parameters(), **options)
    with pytorch_ext.check_reproducible() as found:
        training(model, x, adam, optim.clip_grad_norm_)
    assert any(name.startswith(("aten._foreach_", "aten._fused_")) for name in names(found))


def test_stock_layers_between_ours_are_named_with_their_count():
    model, arguments = made("image")
    pytorch_ext.convert(model)
    with pytorch_ext.check_reproducible() as found:
        model(*arguments).sum().backward()
    rows = {row.operator: row for row in found}
    assert rows["aten.native_batch_norm"].calls == 2 and rows["aten.convolution_backward"].calls == 1
    assert rows["aten.convolution"].device == "cpu" and rows["aten.convolution"].dtype == "float32"


def test_what_only_looks_exact_is_named_with_the_reason():
    x, y = torch.randn(4), torch.randn(4)
    with pytorch_ext.check_reproducible() as found:
        _ = x / 10, torch.add(x, y, alpha=2), x.mean(), torch.randn(3), x / y.sum()
    why = {row.operator: row.why for row in found}
    assert why["aten.div.Tensor"].startswith("division by a number")
    assert why["aten.add.Tensor"].startswith("alpha")
    assert why["aten.randn"].startswith("torch's random numbers")
    assert {"aten.mean", "aten.sum"} <= why.keys()


def test_exact_operators_and_integers_are_inside():
    x, y, i = torch.randn(4), torch.randn(4), torch.arange(4)
    with pytorch_ext.check_reproducible() as found:
        _ = x + y, x * 3, x / y, x - y, x.sqrt(), torch.where(x > 0, x, y), torch.cat([x, y]), x[i], i.sum(), i * 2
        _ = torch.maximum(x, y), x.clamp(0, 1), x.reshape(2, 2).t().contiguous(), x.to(torch.bfloat16)
    assert found, str(found)


def test_other_dtypes_of_our_own_kernels_are_outside_too():
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    with pytorch_ext.check_reproducible() as found:
        functional.softmax(x, 1)
    assert [row.why for row in found] == ["the contract is for float32, this is bfloat16"]


def test_watching_changes_no_bit():
    x = torch.randn(5, 6)
    model = perceptron().eval()
    expected = model(x)
    with pytorch_ext.check_reproducible():
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("words", ["EXACT", "MOVES"])
def test_every_listed_operator_exists(words):
    known = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    listed = getattr(reproducibility, words)
    assert sorted(name for name in listed if name not in known and f"{name}_copy" not in known) == []
