"""What the losses share: reductions, and the operators behind the element-wise ones."""

import torch
from torch.nn import _reduction

from .. import native
from .checks import expect
from .paths import traceable

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # at::Reduction's numbers


def reduction_name(op, size_average, reduce, reduction):
    """The reduction meant. The deprecated flags decide where they are given, with stock's warning."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction == "elementwise_mean":  # the old name of mean
        _reduction.get_enum(reduction)  # warns
        reduction = "mean"
    expect(reduction in REDUCTIONS, op, f"reduction one of {', '.join(REDUCTIONS)}", reduction, ValueError)
    return reduction


def expect_broadcastable(op, shape, **weights):
    """Every weight given broadcasts to ``shape``."""
    for name, weight in weights.items():
        if weight is not None:
            sizes = zip(reversed(weight.shape), reversed(shape), strict=False)
            fits = weight.dim() <= len(shape) and all(a in (1, b) for a, b in sizes)
            expect(fits, op, f"{name} that broadcasts to {tuple(shape)}", tuple(weight.shape))


def traceable_loss(input, target, *weights):
    """:func:`traceable`, for tensors of one dtype, or of one after autocast; a weight is a constant to the kernels."""
    given = [input, target, *(w for w in weights if w is not None)]
    dtypes = {t.dtype for t in given}
    if len(dtypes) > 1 and (torch.float64 in dtypes or not torch.is_autocast_enabled(input.device.type)):
        return False
    return traceable(*given) and not any(w.requires_grad for w in given[2:])


if native.library is not None:

    @torch.library.register_fake("pytorch_ext::elementwise_loss_forward")
    def _(input, target, weight, pos_weight, loss, reduction, mask):
        shape = torch.broadcast_shapes(input.shape, target.shape) if reduction == REDUCTIONS["none"] else ()
        return (
            input.new_empty(shape),
            input.new_empty(input.shape) if mask[0] else None,
            target.new_empty(target.shape) if mask[1] else None,
        )

    @torch.library.register_fake("pytorch_ext::elementwise_loss_backward")
    def _(grad, input, target, weight, pos_weight, loss, reduction, mask):
        return input.new_empty(input.shape) if mask[0] else None, target.new_empty(target.shape) if mask[1] else None
