"""What the Triton path covers: ordinary tensors where kernels can run, and what autocast makes of them."""

import torch

from .ops.paths import KERNEL_DTYPES, TRACED, in_function_mode
from .triton_path import PLAIN, kernels

_KEYS = ("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")


def _key_set(names):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return keys.raw_repr()


_FOREIGN = ~_key_set(_KEYS)


def is_ordinary(t):
    """A dense tensor: no subclass but that of a compiler, no wrapper of a functional transform, no lazy conjugate, no
    forward tangent."""
    if type(t) in TRACED:
        return t.layout == torch.strided
    if type(t) not in PLAIN or torch._C._dispatch_keys(t).raw_repr() & _FOREIGN:
        return False
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return not forward_mode or torch.autograd.forward_ad.unpack_dual(t).tangent is None


def in_transform():
    """Whether a function mode, a functional transform or an exporter decides what a call means; torch.jit.trace records
    the registered operators, and could not write a Python function down."""
    if torch._C._is_tracing():
        return True
    return in_function_mode() or torch._C._functorch.peek_interpreter_stack() is not None


def covers(*tensors, optional=()):
    """Whether the kernels take these tensors: ordinary, of their dtypes, on one device; an optional one may be None."""
    if in_transform():
        return False
    given = [*tensors, *(t for t in optional if t is not None)]
    if not all(is_ordinary(t) and t.dtype in KERNEL_DTYPES for t in given):
        return False
    device = given[0].device
    return kernels.launch.can_run_on(device) and all(t.device == device for t in given)


def alike(*tensors):
    """The tensors of one dtype, after what autocast makes of them; None where they differ."""
    device = next(t for t in tensors if t is not None).device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]
    return tensors if len({t.dtype for t in tensors if t is not None}) == 1 else None


def autocast_off(tensor):
    return torch.autocast(tensor.device.type, enabled=False)
