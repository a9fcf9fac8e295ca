"""What a converted method calls in place of torch's functions; each decides at the call itself."""

import functools
import inspect

import torch
import torch.nn.functional as F

from . import functional, fusion, nn
from .attention import multi_head_attention_forward
from .nn import is_fusable
from .ops.activation import activation
from .ops.paths import PLAIN, TRACED


def softmax(input, dim, dtype=None):
    """``torch.softmax``, whose arguments stand in another order than torch.nn.functional's."""
    try:
        return functional.softmax(input, dim, dtype=dtype)
    except AttributeError:  # no tensor, which torch.nn.functional and torch refuse by different classes of error
        return torch.softmax(input, dim, dtype=dtype)


def log_softmax(input, dim, dtype=None):
    """``torch.log_softmax``, likewise."""
    try:
        return functional.log_softmax(input, dim, dtype=dtype)
    except AttributeError:
        return torch.log_softmax(input, dim, dtype=dtype)


def sigmoid(input):
    """``torch.sigmoid``, which torch.nn.functional's is but for the error where there is no tensor."""
    return activation("torch.sigmoid", "sigmoid", input)


def tanh(input):
    """``torch.tanh``, likewise."""
    return activation("torch.tanh", "tanh", input)


def addmm(input, mat1, mat2, *, beta=1, alpha=1):
    """``torch.addmm``, which is linear where a bias is added: so GPT-2 is written."""
    plain = beta == alpha == 1 and dims(input, mat1, mat2) == [1, 2, 2] and input.shape == mat2.shape[1:]
    if plain:
        return functional.linear(mat1, mat2.t(), input)
    return torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)


def bmm(input, mat2):
    """``torch.bmm``: matmul of three dimensions, whose batches do not broadcast."""
    plain = dims(input, mat2) == [3, 3] and input.shape[0] == mat2.shape[0]
    return functional.matmul(input, mat2) if plain else torch.bmm(input, mat2)


def dims(*tensors):
    return [t.dim() if isinstance(t, torch.Tensor) else None for t in tensors]


# This package's function for torch's.
TWINS = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
TWINS |= {torch.matmul: functional.matmul, torch.relu: functional.relu, torch.sigmoid: sigmoid, torch.tanh: tanh}
TWINS |= {torch.softmax: softmax, torch.log_softmax: log_softmax, torch.addmm: addmm, torch.bmm: bmm}
TWINS[F.multi_head_attention_forward] = multi_head_attention_forward
# Modules without parameters, which a method may make for one call.
HOLDERS = ("functional", "LazyLinear", "Linear", "LinearCrossEntropyLoss", "MultiheadAttention", "Sequential")
TWINS |= {getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__ if name not in HOLDERS}
KINDS = {*fusion.FUNCTION_TYPES, type}
TENSOR_METHODS = {name: getattr(functional, name) for name in ("matmul", "relu", "sigmoid", "tanh")}
TENSOR_METHODS |= {"softmax": softmax, "log_softmax": log_softmax}


# These take everything that torch's do, whatever stands in ``**keywords``.
WHOLE = {getattr(F, name) for name in functional.__all__ if hasattr(F, name)}


def takes(twin, positional, keywords):
    """Whether this package's function has such arguments; a call with ``out=`` stays torch's."""
    if "out" in keywords:
        return False
    try:
        inspect.signature(twin).bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def ours(function):
    """This package's function for torch's; anything else is itself."""
    return TWINS.get(function, function) if type(function) in KINDS else function


TENSORS = (*PLAIN, *TRACED)


def method(tensor, name):
    """``tensor.<name>`` with this package's kernel."""
    if type(tensor) in TENSORS:
        return functools.partial(TENSOR_METHODS[name], tensor)
    return getattr(tensor, name)


def matmul(left, right):
    """``left @ right``."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return functional.matmul(left, right)
    return left @ right


def activate(activation, linear, input, **options):
    """``activation(linear(input), **options)``, in one kernel where the two are a Linear and its activation."""
    if is_fusable(linear):
        kind = fusion.kind_of(activation, options)
        if kind is not None:
            return functional.linear(input, *fusion.weight_and_bias(linear), activation=kind)
    return ours(activation)(linear(input), **options)


def activate_by_method(name, linear, input):
    """``linear(input).<name>()``, likewise."""
    if is_fusable(linear):
        return functional.linear(input, *fusion.weight_and_bias(linear), activation=fusion.METHODS[name])
    return getattr(linear(input), name)()
