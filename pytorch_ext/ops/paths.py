"""How a function finds its path when the eager kernels have not taken the call.

Every function of the package reads alike::

    if not is_dynamo_compiling():
        result = choice.kernels.<op>(...)          # eager: one native call, None where it does not apply
        if result is not None:
            return result
    if not overridden(...):                         # plain tensors: say what is wrong with them, if anything is
        check(...)
        operators = traceable(...)                  # torch.compile, torch.export: the registered operators
        if operators:
            return operators.<op>(...)
    return <the stock composition>                  # everything else: subclasses, transforms, other dtypes and devices
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.compiler import is_dynamo_compiling
from torch.utils._device import DeviceContext

from .. import native, triton_path
from ..backends import choice
from ..triton_path import PLAIN
from .checks import expect

__all__ = ["KERNEL_DTYPES", "choice", "is_dynamo_compiling", "is_traced", "overridden", "products_are_ieee"]
__all__ += ["register_fake", "traceable"]

# What torch.export and AOTAutograd call a function with; under Dynamo they pass for plain tensors.
TRACED = (FakeTensor, FunctionalTensor)
KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def overridden(*arguments):
    """Whether a ``__torch_function__`` of an argument or of a mode, or a layout, decides what the call means."""
    if not is_dynamo_compiling() and all(t is None or type(t) in TRACED for t in arguments):
        return False  # a tracer's own mode only looks on
    if torch.overrides.has_torch_function(arguments):
        if is_dynamo_compiling() or in_function_mode() or any(map(has_own_function, arguments)):
            return True
    return any(map(is_laid_out_otherwise, arguments))


def has_own_function(value):
    """Whether it is its class that decides, not a mode."""
    function = getattr(type(value), "__torch_function__", None)
    return type(value) not in PLAIN and function not in (None, torch._C._disabled_torch_function_impl)


def is_laid_out_otherwise(value):
    """Whether a tensor is sparse, nested or quantised: torch knows what a call means then, or has the error."""
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout != torch.strided or value.is_nested or value.is_quantized


def in_function_mode():
    """Whether a function mode decides what a call means. That of ``torch.set_default_device`` and ``with
    torch.device(...)`` is about new tensors only."""
    modes = range(torch._C._len_torch_function_stack())
    return any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in modes)


def is_overriding(value):
    """Whether a value has a ``__torch_function__`` of its own, or is a sparse, nested or quantised tensor: torch knows
    what a call means then, or has the error."""
    if type(value) not in PLAIN:
        return hasattr(value, "__torch_function__")
    return value.layout != torch.strided or value.is_nested or value.is_quantized


def is_traced(*tensors):
    """Whether Dynamo traces the call, another tracer the tensors, or torch.jit.trace what Triton's kernels would do."""
    if is_dynamo_compiling() or any(type(t) in TRACED for t in tensors):
        return True
    return torch._C._is_tracing() and choice.takes_triton


def traceable(*tensors):
    """While a graph is traced the registered operators that cover these tensors (None is skipped), if any do."""
    if not is_traced(*tensors) or choice.name == "stock" or is_exporting_onnx():
        return None
    if not all(t is None or t.dtype in KERNEL_DTYPES for t in tensors):
        return None
    libraries = {library_for(str(t.device), choice.name) for t in tensors if t is not None}
    if len(libraries) != 1:
        return None
    return {None: None, "native": torch.ops.pytorch_ext, "triton": torch.ops.pytorch_ext_triton}[libraries.pop()]


def constant_under_dynamo(function):
    """``torch.compiler.assume_constant_result`` without importing Dynamo, which takes a second."""
    function._dynamo_marked_constant = True
    return function


@constant_under_dynamo
def is_exporting_onnx():
    """Whether torch.onnx is at work, the exporter of today or the older one: both know stock operators only."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    older = sys.modules.get("torch.onnx._internal.torchscript_exporter._globals")
    return bool((flags and flags._is_onnx_exporting) or (older and older.GLOBALS.in_onnx_export))


@constant_under_dynamo  # a tensor under tracing is none to run a self-test with
def library_for(device, backend):
    """Whose kernels run on this device: the native library's, if they have passed the self-test there, or Triton's."""
    if backend != "triton" and native.library is not None:
        on_gpu = device.startswith("cuda")
        if device == "cpu" or (on_gpu and native.library.has_kernels(torch.empty(0, device=device))):
            return "native"
        if not on_gpu or not choice.takes_triton:
            return None
    runs = triton_path.problem() is None and triton_path.kernels.launch.can_run_on(torch.device(device))
    return "triton" if runs else None


# The fake (meta) kernels, which the native library's operators and Triton's share: {operator: function}
FAKES = {}


def register_fake(name):
    """A decorator: the fake kernel of that operator, which refuses tensors of several devices as the real one does."""

    def register(function):
        def fake(*arguments):
            expect_one_device(name, arguments)
            return function(*arguments)

        FAKES[name] = fake
        if native.library is not None:
            torch.library.register_fake(f"pytorch_ext::{name}", fake)
        return function

    return register


def expect_one_device(op, arguments):
    """A single number may be on the CPU, as dropout's key is."""
    tensors = [t for t in arguments if isinstance(t, torch.Tensor) and (t.dim() > 0 or t.device.type != "cpu")]
    for t in tensors[1:]:
        expect(t.device == tensors[0].device, op, f"tensors on {tensors[0].device}", t.device)


def products_are_ieee(tensor):
    """Whether torch's flags leave float32 products in float32; a user may have turned TF32 or bfloat16 products on."""
    return tensor.dtype != torch.float32 or _fp32_precision(tensor.device.type) not in ("tf32", "bf16")


@constant_under_dynamo  # the flags' module is closed to Dynamo
def _fp32_precision(device):
    return (torch.backends.cuda if device == "cuda" else torch.backends.mkldnn).matmul.fp32_precision
