"""No call of a registered operator, whatever its arguments are, ends the interpreter: it returns, or it raises."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_native

import pytorch_ext  # noqa: F401

ERRORS = (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
SHAPES = [(), (0,), (1,), (3,), (2, 3), (3, 4), (3, 3), (0, 3), (3, 0), (2, 3, 4), (2, 1, 3), (5, 2, 3, 4), (1,) * 70]
DTYPES = [torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64]
SCALARS = {
    "int": [0, 1, 2, -1, -100, 2**62, -(2**63)],
    "float": [0.0, 0.5, 1.0, -1.0, 2.0, float("nan"), float("inf")],
    "bool": [True, False],
    "Generator": [torch.Generator()],
    "str": ["", "none", "relu", "gelu", "mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"],
}


def any_tensor(choose):
    shape, dtype = choose(SHAPES), choose(DTYPES)
    kind = choose(["meta", "transposed", "expanded", *["plain"] * 9])
    if kind == "meta":
        return torch.empty(shape, dtype=dtype, device="meta")
    t = torch.rand(shape).to(dtype) if dtype.is_floating_point else torch.randint(-1, 4, shape).to(dtype)
    if kind == "transposed" and t.dim() > 1:
        t = t.transpose(0, -1)
    elif kind == "expanded" and t.numel():
        t = t[None].expand(3, *t.shape)
    return t.requires_grad_() if t.is_floating_point() and choose([True, False]) else t


def any_value(type, choose):
    kind = str(type)
    if kind.startswith("Optional["):
        return None if choose([True, False]) else any_value(type.getElementType(), choose)
    if kind.startswith("List["):
        return [any_value(type.getElementType(), choose) for _ in range(choose([0, 1, 2, 2, 3]))]
    return any_tensor(choose) if kind == "Tensor" else choose(SCALARS[kind])


def call_at_random(seed, count=1500):
    choose = random.Random(seed).choice
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("pytorch_ext::")]
    for _ in range(count):
        schema = choose(schemas)
        # A dtype is a number in the schema, and torch's own operators end the interpreter at a wrong one.
        arguments = [
            choose([None, torch.float32, torch.float64, torch.int64])
            if argument.name == "dtype"
            else any_value(argument.type, choose)
            for argument in schema.arguments
        ]
        try:
            found = getattr(torch.ops.pytorch_ext, schema.name.removeprefix("pytorch_ext::"))(*arguments)
            for t in found if isinstance(found, tuple) else (found,):
                if t is not None and t.requires_grad:
                    t.sum().backward()
        except ERRORS:
            pass


@needs_native
@pytest.mark.parametrize("seed", range(3))
def test_any_arguments_leave_the_interpreter_alive(seed):
    root = Path(__file__).resolve().parent
    paths = [str(root), str(root.parent)]
    code = f"import sys; sys.path[:0] = {paths}; import test_no_crash; test_no_crash.call_at_random({seed})"
    finished = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
