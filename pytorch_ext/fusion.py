"""Which modules and functions are activations that a product's kernel computes too, asked at each call."""

import contextlib

import torch
import torch.nn.functional as F
from torch.nn.modules.module import _has_any_global_hook

from . import functional

# The kind, as `functional.linear(activation=)` names it, of every module, function and method that is one.
MODULES = {
    torch.nn.ReLU: "relu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.GELU: "gelu",
    torch.nn.SiLU: "silu",
}
FUNCTIONS = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_, functional.relu), "relu"),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid, functional.sigmoid), "sigmoid"),
    **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh, functional.tanh), "tanh"),
    **dict.fromkeys((F.gelu, functional.gelu), "gelu"),
    **dict.fromkeys((F.silu, functional.silu), "silu"),
}
METHODS = {name + end: name for name in ("relu", "sigmoid", "tanh") for end in ("", "_")}
GELU = {"none": "gelu", "tanh": "gelu_tanh"}  # by its `approximate`

FUNCTION_TYPES = {type(function) for function in FUNCTIONS}


_one_by_one = False


@contextlib.contextmanager
def one_by_one():
    """Inside, every module is called by itself: for who traces a model to see its modules."""
    global _one_by_one
    before, _one_by_one = _one_by_one, True
    try:
        yield
    finally:
        _one_by_one = before


def weight_and_bias(linear):
    """Both, as attributes give them, without the detour that ``Module.__getattr__`` is."""
    try:
        parameters = linear._parameters
        return parameters["weight"], parameters["bias"]
    except KeyError:  # computed from other parameters
        return linear.weight, linear.bias


def is_unwatched(module):
    """Whether nobody would see this module being left out: no hook, no ``forward`` of its own, not compiled."""
    state = module.__dict__
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or state.get("_compiled_call_impl") is not None
        or _has_any_global_hook()
        or _one_by_one
    )


def kind_of_module(module):
    """The kind of an activation module that may be left out, or None."""
    kind = MODULES.get(type(module))
    if kind is None or not is_unwatched(module):
        return None
    return GELU.get(module.approximate) if kind == "gelu" else kind


def kind_of(activation, options):
    """The kind of a module or function called with these keyword arguments, or None."""
    if type(activation) not in FUNCTION_TYPES:
        return None if options else kind_of_module(activation)
    kind = FUNCTIONS.get(activation)
    if not options:
        return kind
    if kind == "gelu":
        return GELU.get(options["approximate"]) if options.keys() == {"approximate"} else None
    # In place or not, nobody else holds what a product has just returned.
    return kind if kind in ("relu", "silu") and options.keys() == {"inplace"} else None
