"""Which methods of a user's class call what a kernel of this package does."""

import dis
import types

import torch

from . import calls, fusion
from .names import Names
from .recompile import Refused, definition, names_in, undecorated
from .rewrite import Exchange, is_attention_table

# torch's own classes whose methods are looked into.
TORCH_CLASSES = (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)
# Names of functions and methods that a kernel of this package stands for, and the bytes of an ``@``.
NAMES = {function.__name__ for function in (*calls.TWINS, *fusion.FUNCTIONS)} | {*fusion.METHODS, *calls.TENSOR_METHODS}
MATRIX_PRODUCT = {
    (dis.opmap[name], n) for name in {"BINARY_OP", "BINARY_MATRIX_MULTIPLY"} & {*dis.opmap} for n in (0, 4)
}


def methods_of(cls):
    """(function, name of the class it stands in) of every method of a user's class, by its name."""
    found = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch" and base not in TORCH_CLASSES:
            continue
        for name, value in vars(base).items():
            usable = isinstance(value, types.FunctionType) and name == value.__name__
            found.setdefault(name, (value, base.__name__) if usable else None)
    return {
        name: value for name, value in found.items() if value and not (name.startswith("__") and name != "__call__")
    }


def may_call_ours(function, module):
    """Whether a method's names leave it possible: frameworks bring hundreds of methods, and reading one takes long."""
    names = names_in(function.__code__)
    if hasattr(function, "__wrapped__") or names & NAMES:
        return True
    if any(is_ours(value) for value in Names(function, module).outer.values()):
        return True
    if any(name in module._modules or is_ours(module.__dict__.get(name)) for name in names):
        return True
    return any(is_ours(function.__globals__.get(name)) for name in names) or has_matrix_product(function.__code__)


def is_ours(value):
    """Whether a kernel of this package does what a function or an activation module does, or functions of a table."""
    known = type(value) in fusion.FUNCTION_TYPES and (value in calls.TWINS or value in fusion.FUNCTIONS)
    return known or type(value) in fusion.MODULES or is_attention_table(value)


def has_matrix_product(code):
    """Whether there may be an ``@`` in the code, or in a function inside it."""
    operations = zip(code.co_code[::2], code.co_code[1::2], strict=True)
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return any(operation in MATRIX_PRODUCT for operation in operations) or any(map(has_matrix_product, inner))


def places_in(module):
    """(the calls in the methods of ``module`` to exchange, why some method was not looked into or None)."""
    places, problem = [], None
    for outer, owner in methods_of(type(module)).values():
        function = undecorated(outer)
        if not may_call_ours(function, module):
            continue
        try:
            tree = definition(function, owner)
        except Refused as why:
            problem = f"{function.__name__}: {why}"
            continue
        exchange = Exchange(function, module)
        exchange.run(tree)
        places += exchange.places
    return places, problem
