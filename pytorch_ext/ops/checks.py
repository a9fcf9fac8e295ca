"""Checks of an argument's meaning, and the form of every error message: ``<op>: expected <what>, got <what came>``."""

import torch


def expect(condition, op, what, got, error=RuntimeError):
    """Raise ``error`` unless the condition holds."""
    if not condition:
        raise error(f"{op}: expected {what}, got {got}")


# What torch's functions written in Python read of an argument before anything else, and its operators do not: a value
# without that attribute is refused by an AttributeError.
ASKED_FIRST = {
    **{op: {"input": op} for op in ("softmax", "log_softmax", "sigmoid", "tanh")},
    **{op: dict.fromkeys(("input", "target", "weight"), "size") for op in ("mse_loss", "binary_cross_entropy")},
    "binary_cross_entropy_with_logits": {"input": "size", "target": "size"},
    "linear_cross_entropy": {"input": "dim", "linear_weight": "dim", "target": "shape", "linear_bias": "shape"},
}


def expect_tensors(op, **arguments):
    """Every argument is a Tensor, on the first one's device or a single number on the CPU.

    What is none is refused by the class of error that torch's function raises, TypeError or AttributeError.
    """
    first_name, first = next(iter(arguments.items()))
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            asked = ASKED_FIRST.get(op, {}).get(name)
            error = TypeError if asked is None or hasattr(value, asked) else AttributeError
            expect(False, op, f"{name} to be a Tensor", type(value).__name__, error)
        if value.device != first.device and (value.device.type != "cpu" or value.dim() > 0):
            expect_device(op, name, value, first_name, first)


def expect_device(op, name, value, first_name, first):
    """``value`` is on the device of ``first``."""
    expect(value.device == first.device, op, f"{name} on {first.device} as {first_name}", value.device)


def is_autocast(t):
    """Whether autocast is on where this tensor lives; for the meta device torch knows of none."""
    return t.device.type != "meta" and torch.is_autocast_enabled(t.device.type)


def expect_alike(op, *, dtype=True, **arguments):
    """All given tensors share one device and, unless autocast will change it, one dtype; None is skipped."""
    given = [(name, value) for name, value in arguments.items() if value is not None]
    first_name, first = given[0]
    dtype = dtype and not is_autocast(first)
    for name, value in given[1:]:
        expect_device(op, name, value, first_name, first)
        expect(not dtype or value.dtype == first.dtype, op, f"{name} of {first.dtype} as {first_name}", value.dtype)


def into(op, out, result):
    """``result`` in the tensor that the caller has given for it, resized with stock's warning where it must be."""
    expect_tensors(op, out=out)
    recorded = torch.is_grad_enabled() and (result.requires_grad or out.requires_grad)
    expect(not recorded, op, "tensors that require no gradient where there is an out", "one that does")
    same = out.dtype == result.dtype and out.device == result.device
    expect(same, op, f"out of {result.dtype} on {result.device}", f"{out.dtype} on {out.device}")
    return torch.alias_copy(result, out=out)


def broadcast(shape, other):
    """Whether two shapes broadcast together."""
    return all(a == b or a == 1 or b == 1 for a, b in zip(reversed(shape), reversed(other), strict=False))


def expands(shape, to):
    """Whether a shape broadcasts to the other one, which stays as it is."""
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a == 1 or a == b for a, b in sizes)
