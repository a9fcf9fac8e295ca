"""scaled_dot_product_attention: products, softmax and dropout, block by block in one kernel or one after the other."""

import contextlib
import math

import torch
import torch.nn.functional as F

from ..triton_coverage import in_transform, is_ordinary
from ..triton_path import launchers
from .checks import broadcast, expands, expect, expect_alike, expect_tensors, is_autocast
from .composition import to_save, with_composed_derivative
from .dropout import dropout
from .matmul import matmul
from .paths import (
    choice,
    is_dynamo_compiling,
    is_traced,
    library_for,
    overridden,
    products_are_ieee,
    register_fake,
    traceable,
)
from .softmax import softmax

OP = "scaled_dot_product_attention"
DTYPES = (torch.float32, torch.float64)
# Computed in float32 on the CPU, conversions included. Measured on an EPYC with AVX-512 and its instructions for
# bfloat16, torch 2.13, one thread, as stock's time over ours, forward and training:
#
#   float16    2x4x16x16 2.2 2.0, 8x8x128x64 6.3 15.8, 4x8x512x64 4.0 15.0, causal 4.9 20.5
#   bfloat16   2x4x16x16 1.4 1.6, 8x8x128x64 3.6  2.9, 4x8x512x64 2.1  1.8, causal 2.5  2.3
#
# On a device they are stock's, which has tensor cores for them.
NARROW = (torch.float16, torch.bfloat16)


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """``torch.nn.functional.scaled_dot_product_attention``.

    query ``(..., L, E)``, key ``(..., S, E)``, value ``(..., S, Ev)``; attn_mask expands to ``(..., L, S)``. The result
    is ``dropout(softmax((query * scale) @ key.mT + mask)) @ value``, each operation as this package has it. A boolean
    mask adds 0 or -inf; where a mask hides every key, the result is 0. bfloat16 and float16 are computed in float32 on
    the CPU and take the stock operator elsewhere. Raises TypeError for what is no tensor and RuntimeError for shapes,
    dtypes and devices that do not fit.
    """
    if dropout_p == 0 and enable_gqa is False and not is_dynamo_compiling():
        output = choice.kernels.scaled_dot_product_attention(query, key, value, attn_mask, is_causal, scale)
        if output is not None:
            return output
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if not overridden(*tensors):
        expect_tensors(OP, query=query, key=key, value=value, **({} if attn_mask is None else {"attn_mask": attn_mask}))
        check(*tensors)
        scale = float(scale) if isinstance(scale, int) else scale
        known = type(is_causal) is type(enable_gqa) is bool and isinstance(scale, float | torch.SymFloat | None)
        known = known and (attn_mask is None or not is_causal)
        if known and 0 <= dropout_p <= 1 and fits(*tensors, enable_gqa=enable_gqa):
            output = by_kernels(tensors, dropout_p, is_causal, scale, enable_gqa)
            if output is not None:
                return output
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def by_kernels(tensors, dropout_p, is_causal, scale, enable_gqa):
    """The result of arguments that fit; None where this package's kernels are not for them."""
    device, dtype = tensors[0].device.type, tensors[0].dtype
    autocast = is_autocast(tensors[0])
    if choice.name == "stock" or (autocast and is_traced(*tensors)):
        return None
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    computed = torch.float32 if dtype in NARROW and device == "cpu" else dtype
    if computed not in DTYPES:
        return None
    tensors = [t if t.dtype == torch.bool else t.to(dtype).to(computed) for t in tensors]
    with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
        if not takes(*tensors):
            return None
        mask = tensors[3] if len(tensors) > 3 else None
        return composed(*tensors[:3], mask, dropout_p, is_causal, scale, enable_gqa).to(dtype)


def check(query, key, value, attn_mask=None):
    """What torch's operators demand; of the lengths, only its composition does, and the others read past the end."""
    dims = (query.dim(), key.dim(), value.dim())
    expect(min(dims) >= 2, OP, "query, key and value of at least 2 dimensions", "{}, {} and {}".format(*dims))
    expect_alike(OP, query=query, key=key, value=value)
    lengths = f"{tuple(key.shape)} and {tuple(value.shape)}"
    expect(key.shape[-2] == value.shape[-2], OP, "key (..., S, E) and value (..., S, Ev)", lengths)
    if attn_mask is not None and not is_autocast(query):
        dtypes = (torch.bool, torch.float32, query.dtype)
        expect(attn_mask.dtype in dtypes, OP, f"attn_mask of bool, float32 or {query.dtype}", attn_mask.dtype)


def takes(query, key, value, attn_mask=None):
    """Whether this package's kernels are for such tensors."""
    tensors = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if not products_are_ieee(query) or any(t.dtype not in (torch.bool, query.dtype) for t in tensors):
        return False
    if is_traced(*tensors):
        return traceable(query, key, value) is not None
    if in_transform() or not all(is_ordinary(t) and t.device == query.device for t in tensors):
        return False
    return choice.name != "stock" and library_for(str(query.device), choice.name) is not None


def fits(query, key, value, attn_mask=None, *, enable_gqa=False):
    """Whether the shapes are those of the docstring; torch has the error for others."""
    if query.shape[-1] != key.shape[-1]:
        return False
    batch = query.shape[:-2]
    if enable_gqa:
        heads = [t.shape[-3] if t.dim() > 2 else 0 for t in (query, key, value)]
        if not all(heads) or heads[1] != heads[2] or heads[0] % heads[1] or not query.dim() == key.dim() == value.dim():
            return False
        batches = (batch[:-1], key.shape[:-3], value.shape[:-3])
    else:
        batches = (batch, key.shape[:-2], value.shape[:-2])
    if not all(broadcast(a, b) for a in batches for b in batches):
        return False
    if attn_mask is None:
        return True
    scores = torch.broadcast_shapes(batches[0], batches[1]) + batch[len(batches[0]) :]
    return attn_mask.dim() >= 2 and expands(attn_mask.shape, (*scores, query.shape[-2], key.shape[-2]))


def composed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
    """The function, of arguments that fit."""
    if enable_gqa:  # the query heads that share a key are a dimension of their own, along which it is broadcast
        heads = query.shape[-3]
        sharing = (key.shape[-3], heads // key.shape[-3])
        query, key, value = query.unflatten(-3, sharing), key.unsqueeze(-3), value.unsqueeze(-3)
        if attn_mask is not None and attn_mask.dim() > 2:
            one = attn_mask.shape[-3] == 1
            attn_mask = attn_mask.unsqueeze(-3) if one else attn_mask.unflatten(-3, sharing)
    output = in_one_kernel(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if output is None:
        weights = attention_weights(matmul(query * factor(query, scale), key.mT), attn_mask, is_causal)
        if dropout_p > 0:
            weights = dropout(weights, dropout_p)
        output = matmul(weights, value)
    return output.flatten(-4, -3) if enable_gqa else output


def in_one_kernel(query, key, value, attn_mask, dropout_p, is_causal, scale):
    """The same bits from the operator that never stores all scores, or None where it is not for this call."""
    if dropout_p > 0:
        return None
    if not is_traced(query, key, value):
        return choice.kernels.scaled_dot_product_attention(query, key, value, attn_mask, is_causal, scale)
    constant = attn_mask is None or not attn_mask.requires_grad
    alike = query.dim() == key.dim() == value.dim()
    if not constant or not alike or not all(n > 0 for n in sizes(query, key, value)):
        return None
    fused = getattr(traceable(query, key, value), OP, None)
    return fused and fused(query, key, value, attn_mask, is_causal, scale)


def factor(query, scale):
    """What the queries are multiplied by; without a scale and without columns that makes no difference."""
    if scale is not None:
        return scale
    return 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0


def sizes(*tensors):
    return [n for t in tensors for n in t.shape]


def attention_weights(scores, attn_mask, is_causal, softmax=softmax):
    """softmax of the scores that a mask leaves; 0 where it leaves none."""
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return softmax(scores, -1)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(attn_mask.logical_not(), -math.inf)
    scores = masked(scores, attn_mask)
    if is_causal:  # the first key is there for every row
        return softmax(scores, -1)
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    return softmax(scores.masked_fill(hidden, 0), -1).masked_fill(hidden, 0)


def masked(scores, attn_mask):
    """``scores + attn_mask``."""
    if attn_mask.requires_grad and not is_traced(scores, attn_mask):
        return MaskFunction.apply(scores, attn_mask)
    return scores + attn_mask


class MaskFunction(torch.autograd.Function):
    """The sum of scores and a mask, whose gradient is summed by the contract's rule."""

    @staticmethod
    def forward(ctx, scores, attn_mask):
        ctx.shape = attn_mask.shape
        return scores + attn_mask

    @staticmethod
    def backward(ctx, grad):
        if not ctx.needs_input_grad[1]:
            return grad, None
        shape = ctx.shape
        summed = with_composed_derivative(
            lambda g: choice.kernels.sum_to_size(g, shape), lambda g: g.sum_to_size(shape), grad
        )
        return grad, summed


# ---- on the Triton path ---------------------------------------------------------------------------------------------


class AttentionFunction(torch.autograd.Function):
    """The function where no score is kept, of a constant mask."""

    @staticmethod
    def forward(ctx, query, key, value, attn_mask, *options):
        of_query, of_key, _ = ctx.needs_input_grad[:3]
        ctx.save_for_backward(query, key, to_save(value, of_query or of_key), attn_mask)
        ctx.options = options  # is_causal, scale
        return launchers.scaled_dot_product_attention_forward(query, key, value, attn_mask, *options)

    @staticmethod
    def backward(ctx, grad):
        *tensors, attn_mask = ctx.saved_tensors
        return *attention_backward(grad, *tensors, attn_mask, *ctx.options, ctx.needs_input_grad[:3]), None, None, None


def attention_backward(grad, query, key, value, attn_mask, is_causal, scale, mask):
    """The three gradients that the mask chooses, differentiable."""

    def kernel(*tensors):
        return launchers.scaled_dot_product_attention_backward(*tensors, attn_mask, is_causal, scale, mask)

    def compose(grad, query, key, value):
        scaled = query * factor(query, scale)
        weights = attention_weights(scaled @ key.mT, attn_mask, is_causal, torch.softmax)
        dweights = grad @ value.mT
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        dquery, dkey, dvalue = dscores @ key * factor(query, scale), dscores.mT @ scaled, weights.mT @ grad
        return dquery.sum_to_size(query.shape), dkey.sum_to_size(key.shape), dvalue.sum_to_size(value.shape)

    return with_composed_derivative(kernel, compose, grad, query, key, value)


@register_fake(f"{OP}_forward")
def _(query, key, value, attn_mask, is_causal, scale):
    return query.new_empty((*batch_of(query, key, value), query.shape[-2], value.shape[-1]))


@register_fake(f"{OP}_backward")
def _(grad, query, key, value, attn_mask, is_causal, scale, mask):
    return tuple(t.new_empty(t.shape) if wanted else None for t, wanted in zip((query, key, value), mask, strict=True))


def batch_of(*tensors):
    return torch.broadcast_shapes(*(t.shape[:-2] for t in tensors))
