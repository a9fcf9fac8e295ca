"""MultiheadAttention with this package's products and softmax."""

import functools
import types

import torch
import torch.nn.functional as F

from . import functional
from .ops.paths import is_dynamo_compiling


class Overlay:
    """A namespace with some names exchanged."""

    def __init__(self, namespace, **exchanged):
        self._namespace = namespace
        vars(self).update(vars(namespace), **exchanged)  # all of it: a look through __getattr__ takes a microsecond

    def __getattr__(self, name):
        return getattr(self._namespace, name)


def over(function, **exchanged):
    """The same function, with other objects behind some of the global names it uses."""
    namespace = {**function.__globals__, **exchanged}
    changed = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


@functools.cache
def attention_with_kernels():
    """torch's own ``multi_head_attention_forward``, whose products, softmax and dropout are this package's."""
    products = {"linear": functional.linear}
    products |= {name: over(getattr(F, name), **products) for name in ("_in_projection", "_in_projection_packed")}
    return over(
        F.multi_head_attention_forward,
        **products,
        softmax=functional.softmax,
        dropout=functional.dropout,
        scaled_dot_product_attention=functional.scaled_dot_product_attention,
        torch=Overlay(
            torch,
            bmm=functional.matmul,
            baddbmm=lambda added, batch1, batch2: added + functional.matmul(batch1, batch2),
        ),
    )


def multi_head_attention_forward(*args, **kwargs):
    """``torch.nn.functional.multi_head_attention_forward``."""
    return attention_with_kernels()(*args, **kwargs)


@functools.cache
def forward_with_kernels():
    """torch's own ``MultiheadAttention.forward``, over the function above."""
    overlay = Overlay(F, multi_head_attention_forward=multi_head_attention_forward)
    return over(torch.nn.MultiheadAttention.forward, F=overlay)


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention``.

    The whole layer stays torch's one operator in inference, where torch's fast path covers it. Asked for weights or
    not, a layer has the same bits, except where a mask hides every key: weights of such rows are NaN, as in torch.
    """

    @functools.wraps(torch.nn.MultiheadAttention.forward)
    def forward(self, *args, **kwargs):
        if is_dynamo_compiling():  # which looks names up in the function's own module
            return super().forward(*args, **kwargs)
        return forward_with_kernels()(self, *args, **kwargs)
