"""Derivatives of a derivative on the Triton path.

<op>_backward is itself differentiable: its value is always the fused kernel's, and its own derivative is taken of the
same formula composed of stock operators, which can be differentiated any number of times.
"""

import torch

NARROW = (torch.bfloat16, torch.float16)


def to_save(factor, needed):
    """What a product's backward pass asks of a factor: its sizes alone, in one stored element, where the other factor
    has no gradient."""
    return factor if needed else factor.new_empty(()).expand(factor.shape)


def with_composed_derivative(kernel, compose, *tensors, widen=True):
    """kernel(*tensors), a tensor or a tuple, differentiated as compose(*tensors); a tensor may be None in either.

    ``widen``: the composition computes in float32 what it is given in 16 bits, to which every stock operator rounds.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return ComposedDerivative.apply(kernel, compose, widen, *tensors)
    return kernel(*tensors)


class ComposedDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, compose, widen, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.compose, ctx.widen = compose, widen
        return kernel(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        return None, None, None, *vjp_of_composition(ctx.compose, ctx.saved_tensors, grads, ctx.widen)


def vjp_of_composition(compose, inputs, grads, widen):
    """Vector-Jacobian product of compose(*inputs) with ``grads``; None where an input requires no gradient.

    The inputs are aliased, so that one of them being computed from another does not add to its gradient.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [alias(t, create_graph) for t in inputs]
        outputs = compose(*(t.float() if widen and t is not None and t.dtype in NARROW else t for t in aliases))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [t for t in aliases if t is not None and t.requires_grad]
        pairs = zip(outputs, grads, strict=True)
        used = [(y, g.to(y.dtype)) for y, g in pairs if y is not None and g is not None and y.requires_grad]
        found = [None] * len(wanted)
        if used and wanted:
            found = torch.autograd.grad(
                [y for y, _ in used],
                wanted,
                [g for _, g in used],
                retain_graph=create_graph,
                create_graph=create_graph,
                allow_unused=True,
            )
    found = iter(found)
    return [next(found) if t is not None and t.requires_grad else None for t in aliases]


def alias(t, create_graph):
    """t itself where it needs no gradient, else another tensor with its values."""
    if t is None or not t.requires_grad:
        return t
    return t.view_as(t) if create_graph else t.detach().requires_grad_()
