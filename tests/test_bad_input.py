"""Bad input to any op: an error that names op, argument, what was expected and what came; every tensor as it was."""

import pytest
import torch
from agreement import error_of
from conftest import needs_native

import pytorch_ext.functional as ours

# Every op with arguments it takes.
ARGUMENTS = {
    "linear": {"input": (2, 3), "weight": (4, 3), "bias": (4,)},
    "matmul": {"input": (2, 3), "other": (3, 4)},
    "mse_loss": {"input": (2, 3), "target": (2, 3), "weight": (2, 3)},
    "binary_cross_entropy": {"input": (2, 3), "target": (2, 3), "weight": (3,)},
    "binary_cross_entropy_with_logits": {"input": (2, 3), "target": (2, 3), "weight": (3,), "pos_weight": (3,)},
    "cross_entropy": {"input": (2, 3), "target": (2,), "weight": (3,)},
    "nll_loss": {"input": (2, 3), "target": (2,), "weight": (3,)},
    "softmax": {"input": (2, 3)},
    "log_softmax": {"input": (2, 3)},
    **{op: {"input": (2, 3)} for op in ("dropout", "relu", "sigmoid", "tanh", "gelu", "silu")},
}
EVERY_ARGUMENT = [(op, name) for op in ARGUMENTS for name in ARGUMENTS[op]]
LOSSES = [op for op, names in ARGUMENTS.items() if "target" in names]
OPTIONAL = [("linear", "bias"), *((op, name) for op in LOSSES for name in ("weight", "pos_weight"))]
each_argument = pytest.mark.parametrize(("op", "name"), EVERY_ARGUMENT)
each_pair = pytest.mark.parametrize(("op", "name"), [pair for pair in EVERY_ARGUMENT if pair[1] != "input"])


def arguments_of(op):
    """Good arguments by name."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in ARGUMENTS[op].items()}
    if op in ("cross_entropy", "nll_loss"):
        tensors["target"] = torch.tensor([2, 0])
    return {**tensors, "dim": 1} if "softmax" in op else tensors


def refuse(op, arguments, error, message, **options):
    """The op raises that error, and changes none of its arguments."""
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(error, match=f"^{op}: expected {message}"):
        getattr(ours, op)(**arguments, **options)
    for name, value in before.items():
        assert value.device.type == "meta" or torch.equal(value, arguments[name]), name


def refuse_alike(op, arguments, message):
    """The same, where torch's function raises an error of that very class."""
    stock = getattr(torch.nn.functional, op, None) or getattr(torch, op)
    error = error_of(stock, **arguments)
    refuse(op, arguments, error, message)
    assert error_of(getattr(ours, op), **arguments) is error


@pytest.mark.parametrize("op", ARGUMENTS)
def test_the_arguments_are_good_before_one_is_made_bad(path, op):
    assert getattr(ours, op)(**arguments_of(op)).isfinite().all()


@each_argument
def test_an_argument_that_is_no_tensor_is_named_in_an_error_of_stock_s_class(path, op, name):
    for value in ([1.0], 2.0, "text", arguments_of(op)[name].numpy()):
        refuse_alike(op, arguments_of(op) | {name: value}, f"{name} to be a Tensor, got {type(value).__name__}$")


LARGER = {
    "scaled_dot_product_attention": dict.fromkeys(("query", "key", "value", "attn_mask"), torch.ones(3, 3)),
    "linear_cross_entropy": {
        "input": torch.ones(2, 3),
        "linear_weight": torch.ones(4, 3),
        "target": torch.tensor([0, 3]),
        "linear_bias": torch.ones(4),
        "weight": torch.ones(4),
    },
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in LARGER for name in LARGER[op]])
def test_the_same_holds_for_functions_of_more_tensors(op, name):
    if not hasattr(torch.nn.functional, op):
        pytest.skip("this torch has no such function")
    for value in ([1.0], 2.0, "text", LARGER[op][name].numpy()):
        refuse_alike(op, LARGER[op] | {name: value}, f"{name} to be a Tensor, got {type(value).__name__}$")


@needs_native
def test_operators_refuse_tensors_of_several_devices_before_they_run_too():
    """A graph of them is traced with tensors that have no values."""
    x, w, ops = torch.ones(2, 3), torch.ones(3, 3), torch.ops.pytorch_ext
    for call in (
        lambda a, b: ops.linear(a, b, None, "none"),
        ops.matmul,
        lambda a, b: ops.mse_loss(a, torch.empty_like(a, device=b.device), None, 1),
        lambda a, b: ops.scaled_dot_product_attention(a, b, b, None, False, None),
    ):
        for tensors in ((x.to("meta"), w), (x, w.to("meta"))):
            with pytest.raises(RuntimeError, match=r": expected tensors on (cpu, got meta|meta, got cpu)"):
                call(*tensors)
        assert call(x.to("meta"), w.to("meta")).is_meta
    assert ops.dropout(x.to("meta"), 0.5, torch.tensor(3)).is_meta  # the key is a number of the CPU


@pytest.mark.parametrize(("op", "name"), [pair for pair in EVERY_ARGUMENT if pair not in OPTIONAL])
def test_none_for_a_tensor_is_named(path, op, name):
    refuse_alike(op, arguments_of(op) | {name: None}, f"{name} to be a Tensor, got NoneType$")


@each_pair
def test_an_argument_on_another_device_is_named(path, op, name):
    arguments = arguments_of(op)
    arguments[name] = arguments[name].to("meta")
    refuse(op, arguments, RuntimeError, f"{name} on cpu as input, got meta$")


@pytest.mark.parametrize(
    ("op", "name"), [("linear", "weight"), ("linear", "bias"), ("matmul", "other"), ("cross_entropy", "weight")]
)
def test_an_argument_of_another_dtype_is_named(path, op, name):
    arguments = arguments_of(op)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        message = f"{name} of torch.float32 as input, got {dtype}$"
        refuse(op, arguments | {name: arguments[name].to(dtype)}, RuntimeError, message)


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
def test_class_indices_of_another_dtype_are_named(path, op):
    for dtype in (torch.int32, torch.int16, torch.bool, torch.float32):
        arguments = arguments_of(op)
        arguments["target"] = arguments["target"].to(dtype)
        refuse(op, arguments, RuntimeError, f"target of class indices, torch.int64, got {dtype}$")


@pytest.mark.parametrize("op", LOSSES)
@pytest.mark.parametrize("reduction", ["average", "", "Mean", None, 1, ["mean"], {"mean"}, {}], ids=str)
def test_an_unknown_reduction_is_named(path, op, reduction):
    refuse(op, arguments_of(op), ValueError, "reduction one of none, mean, sum, got ", reduction=reduction)


@pytest.mark.parametrize("op", LOSSES)
def test_another_batch_of_targets_is_named(path, op):
    arguments = arguments_of(op)
    arguments["target"] = arguments["target"].repeat(2, *[1] * (arguments["target"].dim() - 1))
    refuse(op, arguments, (RuntimeError, ValueError), r"target .*\(2,.*got \(4,.*")


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("index", [3, -1, -2, 2**40, -(2**63)])
def test_a_class_index_out_of_range_is_named(path, op, index):
    arguments = arguments_of(op) | {"target": torch.tensor([0, index])}
    refuse(op, arguments, IndexError, rf"class indices in \[0, 3\) or ignore_index -100, got {index}$")


def test_class_probabilities_of_an_integer_dtype_are_named(path):
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        arguments = arguments_of("cross_entropy") | {"target": torch.ones(2, 3, dtype=dtype)}
        refuse("cross_entropy", arguments, RuntimeError, f"target of class probabilities, .* got {dtype}$")
