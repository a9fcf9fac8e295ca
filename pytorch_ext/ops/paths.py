"""How a function finds its path when the eager kernels have not taken the call.

Every function of the package reads alike::

    if not is_dynamo_compiling():
        result = choice.kernels.<op>(...)          # eager: one native call, None where it does not apply
        if result is not None:
            return result
    if not overridden(...):                         # plain tensors: say what is wrong with them, if anything is
        check(...)
        if traceable(...):                          # torch.compile, torch.export: the registered operator
            return torch.ops.pytorch_ext.<op>(...)
    return <the stock composition>                  # everything else: subclasses, transforms, other dtypes and devices
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.compiler import is_dynamo_compiling

from .. import native
from ..backends import choice

__all__ = [
    "KERNEL_DTYPES",
    "choice",
    "is_dynamo_compiling",
    "is_traced",
    "overridden",
    "products_are_ieee",
    "traceable",
]

# What torch.export and AOTAutograd call a function with; under Dynamo they pass for plain tensors.
TRACED = (FakeTensor, FunctionalTensor)
KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def overridden(*arguments):
    """Whether a ``__torch_function__`` of an argument, or of a mode, decides what the call means."""
    if not is_dynamo_compiling() and all(t is None or type(t) in TRACED for t in arguments):
        return False  # a tracer's own mode only looks on
    return torch.overrides.has_torch_function(arguments)


def is_traced(*tensors):
    """Whether Dynamo traces the call, or another tracer the tensors."""
    return is_dynamo_compiling() or any(type(t) in TRACED for t in tensors)


def traceable(*tensors):
    """Whether a graph is being traced and the registered operators cover these tensors (None is skipped)."""
    if not is_traced(*tensors):
        return False
    if native.library is None or choice.name == "stock" or is_exporting_onnx():
        return False
    return all(t is None or (t.dtype in KERNEL_DTYPES and device_has_kernels(str(t.device))) for t in tensors)


def constant_under_dynamo(function):
    """``torch.compiler.assume_constant_result`` without importing Dynamo, which takes a second."""
    function._dynamo_marked_constant = True
    return function


@constant_under_dynamo
def is_exporting_onnx():
    """Whether torch.onnx is at work, which knows stock operators only."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    return flags is not None and flags._is_onnx_exporting


@constant_under_dynamo  # a tensor under tracing is none to run a self-test with
def device_has_kernels(device):
    """Whether the native library has kernels for this device, and they have passed the self-test there."""
    return device == "cpu" or (device.startswith("cuda") and native.library.has_kernels(torch.empty(0, device=device)))


def products_are_ieee(tensor):
    """Whether torch's flags leave float32 products in float32; a user may have turned TF32 or bfloat16 products on."""
    return tensor.dtype != torch.float32 or _fp32_precision(tensor.device.type) not in ("tf32", "bf16")


@constant_under_dynamo  # the flags' module is closed to Dynamo
def _fp32_precision(device):
    return (torch.backends.cuda if device == "cuda" else torch.backends.mkldnn).matmul.fp32_precision
