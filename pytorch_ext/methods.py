"""Which methods of a user's class call what a kernel of this package does."""

import types

import torch

from .candidates import may_call_ours
from .recompile import Refused, definition, undecorated
from .rewrite import Exchange

# torch's own classes whose methods are looked into.
TORCH_CLASSES = (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)

# Modules whose classes give a model hundreds of methods, none of which is a part of its forward.
FRAMEWORKS = ("transformers.modeling_utils", "transformers.generation.utils")
FRAMEWORKS += ("lightning.pytorch.core.module", "pytorch_lightning.core.module")


def methods_of(cls):
    """(function, name of the class it stands in) of every method of a user's class, by its name."""
    found = {}
    for base in cls.__mro__:
        if base not in TORCH_CLASSES and (
            base.__module__.partition(".")[0] == "torch" or base.__module__ in FRAMEWORKS
        ):
            continue
        for name, value in vars(base).items():
            usable = isinstance(value, types.FunctionType) and name == value.__name__
            found.setdefault(name, (value, base.__name__) if usable else None)
    return {
        name: value for name, value in found.items() if value and not (name.startswith("__") and name != "__call__")
    }


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
