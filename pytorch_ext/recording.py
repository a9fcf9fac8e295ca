"""What the kernels are asked while a model runs: every call, its arguments and the layer it belongs to."""

import collections.abc
import contextlib
import dataclasses
import inspect
import time
from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves, tree_map

from . import fusion
from .backends import choice
from .ops.checks import is_autocast

# Hooks on these would keep a product and its activation apart, or are not taken.
UNHOOKED = (torch.nn.Linear, *fusion.MODULES, torch.jit.ScriptModule)


@dataclass
class Call:
    """A call of a kernel. ``result`` is None where the kernels did not take it, ``autocast`` the dtype of autocast or
    None where that was off."""

    op: str
    arguments: tuple
    result: object
    layer: str
    start: float
    seconds: float
    autocast: torch.dtype


class Recorder:
    """A namespace of kernels that hands every call on to another one and keeps it in ``calls``."""

    def __init__(self, kernels, layers):
        self._kernels, self.layers = kernels, layers
        self.calls, self.depth = [], 0  # depth: inside a kernel's call

    def __getattr__(self, name):
        function = getattr(self._kernels, name)

        def call(*arguments):
            start = now(arguments)
            self.depth += 1
            try:
                result = function(*arguments)
            finally:
                self.depth -= 1
            seconds = now(arguments) - start
            autocast = autocast_dtype(arguments)
            self.keep(Call(name, arguments, result, self.layers.of(arguments), start, seconds, autocast))
            return result

        return call

    def keep(self, call):
        """A function may ask twice, the second time with what its defaults mean: one of the two counts."""
        before = self.calls[-1] if self.calls else None
        asked = before and before.result is None and call.op.startswith(before.op)
        if asked and before.arguments[0] is call.arguments[0]:
            self.calls.pop()
        self.calls.append(call)


def autocast_dtype(arguments):
    """What autocast computes a call of these arguments in, or None where it is off."""
    tensor = next((a for a in arguments if isinstance(a, torch.Tensor)), None)
    on = tensor is not None and is_autocast(tensor)
    return torch.get_autocast_dtype(tensor.device.type) if on else None


@contextlib.contextmanager
def kept_random_state(model):
    """Leaves torch's generators, the CPU's and those of the model's devices, as they were."""
    devices = {p.device for p in (*model.parameters(), *model.buffers()) if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        yield


def now(arguments):
    """Seconds, after a device has done what it was asked."""
    if any(isinstance(a, torch.Tensor) and a.is_cuda for a in arguments):
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Layers:
    """Which module is at work: the one whose parameter is used, else the innermost that hooks can tell."""

    model: torch.nn.Module
    stack: list = field(default_factory=list)

    def __post_init__(self):
        named = self.model.named_modules()
        self.owners = {id(p): path for path, module in named for p in module._parameters.values() if p is not None}

    def of(self, arguments):
        for argument in arguments:
            if id(argument) in self.owners:
                return self.owners[id(argument)]
        return self.stack[-1] if self.stack else ""

    @contextlib.contextmanager
    def watched(self):
        """Hooks on every module that is no part of a fused product."""
        paths = {module: path for path, module in self.model.named_modules() if not isinstance(module, UNHOOKED)}

        def enter(module, arguments):
            self.stack.append(paths[module])

        def leave(module, arguments, output):
            self.stack.pop()

        handles = [module.register_forward_pre_hook(enter) for module in paths]
        handles += [module.register_forward_hook(leave, always_call=True) for module in paths]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


@contextlib.contextmanager
def recorded(model):
    """The :class:`Recorder` of everything asked inside the block."""
    with Layers(model).watched() as layers:
        before = choice.kernels
        choice.kernels = recorder = Recorder(before, layers)
        try:
            yield recorder
        finally:
            choice.kernels = before


def arguments_of(model, batch):
    """(positional, keyword) arguments that a batch means: one tensor, a tuple of arguments or a mapping of named ones;
    a mapping that has none of the model's names is the one argument."""
    if isinstance(batch, collections.abc.Mapping):
        return ((), dict(batch)) if takes_names(model, batch) else ((batch,), {})
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def takes_names(model, batch):
    try:
        inspect.signature(model.forward).bind(**batch)
    except TypeError:
        return False
    except ValueError:  # no signature is known
        pass
    return True


def returned(model, batch, change=lambda t: t):
    """The tensors that ``model`` returns for ``batch``, each tensor of which is changed first and is one that the
    caller does not hold: his get no gradient."""

    def own(t):
        return change(t.detach()).requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t

    args, kwargs = arguments_of(model, batch)
    return [t for t in leaves_of(model(*tree_map(own, args), **tree_map(own, kwargs))) if isinstance(t, torch.Tensor)]


def leaves_of(value):
    """The leaves of a result, in dataclasses and mappings of any class too."""
    for leaf in tree_leaves(value):
        if dataclasses.is_dataclass(leaf):
            yield from leaves_of([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        elif isinstance(leaf, collections.abc.Mapping):
            yield from leaves_of(list(leaf.values()))
        else:
            yield leaf
