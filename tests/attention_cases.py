"""Arguments of scaled_dot_product_attention, and its derivatives."""

import math

import torch

INF = math.inf


def make(*shape, dtype=torch.float32, grad=True):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def causal(rows, columns):
    return torch.ones(rows, columns, dtype=torch.bool).tril()


# name: shapes of query, key and value, and the other arguments
CASES = {
    "matrices": ([(5, 4), (7, 4), (7, 3)], {}),
    "batches": ([(2, 5, 4), (2, 7, 4), (2, 7, 3)], {}),
    "heads": ([(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], {}),
    "five dimensions": ([(2, 1, 3, 5, 4)] * 3, {}),
    "broadcast batches": ([(2, 1, 5, 4), (3, 7, 4), (1, 3, 7, 4)], {}),
    "several chunks": ([(1, 2, 300, 270), (1, 2, 520, 270), (1, 2, 520, 5)], {}),
    "scale": ([(2, 5, 4)] * 3, {"scale": 0.3}),
    "negative scale": ([(2, 5, 4)] * 3, {"scale": -2.0}),
    "no scale at all": ([(2, 5, 4)] * 3, {"scale": 0.0}),
    "causal": ([(2, 3, 6, 4)] * 3, {"is_causal": True}),
    "causal, longer keys": ([(2, 3, 4), (2, 7, 4), (2, 7, 4)], {"is_causal": True}),
    "causal, longer queries": ([(2, 9, 4), (2, 4, 4), (2, 4, 4)], {"is_causal": True}),
    "boolean mask": ([(2, 3, 6, 4)] * 3, {"attn_mask": causal(6, 6).T.contiguous()}),
    "mask of every head": ([(2, 3, 5, 4)] * 3, {"attn_mask": torch.arange(150).view(2, 3, 5, 5) % 3 > 0}),
    "mask of keys": (
        [(2, 3, 5, 4)] * 3,
        {"attn_mask": (torch.arange(5) % 3 > 0).view(1, 1, 1, 5)},
    ),
    "floating mask": ([(2, 3, 6, 4)] * 3, {"attn_mask": torch.linspace(-3, 3, 36).view(6, 6)}),
    "hidden rows": ([(2, 6, 4)] * 3, {"attn_mask": torch.eye(6, dtype=torch.bool) & (torch.arange(6) > 2)}),
    "all hidden": ([(2, 6, 4)] * 3, {"attn_mask": torch.full((6, 6), -INF)}),
    "grouped heads": ([(2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3)], {"enable_gqa": True}),
    "one key head": ([(2, 6, 5, 4), (2, 1, 7, 4), (2, 1, 7, 3)], {"enable_gqa": True, "is_causal": True}),
    "grouped heads, masks": (
        [(2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
        {"enable_gqa": True, "attn_mask": torch.linspace(-3, 3, 200).view(2, 4, 5, 5)},
    ),
    "grouped heads, one mask": (
        [(2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
        {"enable_gqa": True, "attn_mask": torch.linspace(-3, 3, 50).view(2, 1, 5, 5)},
    ),
    "no queries": ([(2, 0, 4), (2, 5, 4), (2, 5, 4)], {}),
    "no keys": ([(2, 3, 4), (2, 0, 4), (2, 0, 4)], {}),
    "no width": ([(2, 3, 0), (2, 5, 0), (2, 5, 4)], {}),
    "no values": ([(2, 3, 4), (2, 5, 4), (2, 5, 0)], {}),
    "no batch": ([(0, 3, 4), (0, 5, 4), (0, 5, 4)], {}),
}

# Each sum of the forward and the backward pass over three chunks of a product, or over two with causality between them.
LONG = {
    "chunks of queries": ([(1, 520, 3), (1, 5, 3), (1, 5, 4)], {}),
    "chunks of keys": ([(1, 5, 3), (1, 520, 3), (1, 520, 4)], {}),
    "chunks of width": ([(5, 520), (7, 520), (7, 4)], {}),
    "chunks of values": ([(5, 3), (7, 3), (7, 520)], {}),
    "causal chunks": ([(270, 3), (290, 3), (290, 4)], {"is_causal": True}),
    "causal chunks, longer queries": ([(330, 3), (270, 3), (270, 4)], {"is_causal": True}),
}


def case(name, dtype):
    shapes, options = CASES[name] if name in CASES else LONG[name]
    inputs, mask = [make(*shape, dtype=dtype) for shape in shapes], options.get("attn_mask")
    if mask is not None:
        is_learned = mask.is_floating_point()
        mask = mask.to(inputs[0].device, dtype if is_learned else mask.dtype, copy=True).requires_grad_(is_learned)
        options = options | {"attn_mask": mask}
    return inputs, dict(options)


def wave(t, step):
    """A gradient that differs from element to element."""
    return torch.sin(step * torch.arange(t.numel(), device=t.device)).to(t.dtype).view(t.shape)


def derivatives(function, inputs, options, second=True):
    """[output, gradients, derivatives of those gradients]."""
    wanted = [t for t in (*inputs, options.get("attn_mask")) if t is not None and t.requires_grad]
    output = function(*inputs, **options)
    first = torch.autograd.grad(output, wanted, wave(output, 1.0), create_graph=second)
    if not second:
        return [output, *first]
    total = sum((g * wave(g, 2.0)).sum() for g in first)
    return [output, *first, *torch.autograd.grad(total, wanted, allow_unused=True)]
