"""Which methods and functions may call what a kernel of this package does: frameworks bring hundreds, and reading one
takes long."""

import dis
import functools
import sys
import types

from . import calls, fusion
from .names import Names
from .recompile import is_of_a_module, names_in, undecorated

# Names of functions and methods that a kernel of this package stands for, and the bytes of an ``@``.
NAMES = {function.__name__ for function in (*calls.TWINS, *fusion.FUNCTIONS)} | {*fusion.METHODS, *calls.TENSOR_METHODS}
MATRIX_PRODUCT = {
    (dis.opmap[name], n) for name in {"BINARY_OP", "BINARY_MATRIX_MULTIPLY"} & {*dis.opmap} for n in (0, 4)
}


def may_call_ours(function, module):
    """Whether the names in a method of ``module`` leave it possible."""
    names = names_in(function.__code__)
    if hasattr(function, "__wrapped__") or names & NAMES:
        return True
    if any(is_ours(value) for value in Names(function, module).outer.values()):
        return True
    if any(name in module._modules or is_ours(module.__dict__.get(name)) for name in names):
        return True
    return function_may_call_ours(function) or (LOSS_FUNCTION in names and bool(losses_of(module)))


@functools.cache
def function_may_call_ours(function, depth=3):
    """The same for a plain function, by itself or through such functions that it calls, so many calls deep."""
    names = names_in(function.__code__)
    values = [function.__globals__.get(name) for name in names]
    if names & NAMES or any(map(is_ours, values)) or has_matrix_product(function.__code__):
        return True
    deeper = (undecorated(value) for value in values if depth and is_of_a_module(value))
    return any(function_may_call_ours(inner, depth - 1) for inner in deeper)


def is_ours(value):
    """Whether a kernel of this package does what a function or an activation module does, or functions of a table."""
    known = type(value) in (type, *fusion.FUNCTION_TYPES) and (value in calls.TWINS or value in fusion.FUNCTIONS)
    return known or type(value) in fusion.MODULES or is_attention_table(value)


def has_matrix_product(code):
    """Whether there may be an ``@`` in the code, or in a function inside it."""
    operations = zip(code.co_code[::2], code.co_code[1::2], strict=True)
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return any(operation in MATRIX_PRODUCT for operation in operations) or any(map(has_matrix_product, inner))


# ---- what Hugging Face transformers chooses by name -----------------------------------------------------------------

LOSS_FUNCTION = "loss_function"  # the property of a model that gives its loss


def is_attention_table(value):
    """Whether it is the table from which transformers' layers take their attention function, by its name."""
    cls = type(value)
    return cls.__name__ == "AttentionInterface" and cls.__module__.partition(".")[0] == "transformers"


def losses_of(module=None):
    """The functions from which a model of transformers takes its loss; none for another module."""
    tables = sys.modules.get("transformers.loss.loss_utils")
    if tables is None or (module is not None and not hasattr(type(module), LOSS_FUNCTION)):
        return []
    losses = {id(loss): loss for loss in vars(tables).get("LOSS_MAPPING", {}).values()}
    return [loss for loss in losses.values() if getattr(loss, "__module__", None) == tables.__name__]
