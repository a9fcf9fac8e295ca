"""linear_cross_entropy: linear, then cross_entropy; a loss of one number has the gradients for 1, times its own."""

import numpy as np

from . import linear
from .arithmetic import ieee
from .losses_classification import ONE, cross_entropy, cross_entropy_of_probabilities


def rows_of(logits, shape):
    """Logits, or probabilities, (N, C, ...) as (rows, classes)."""
    return np.moveaxis(logits.reshape(shape), 1, -1).reshape(-1, shape[1])


def logits_of(rows, shape):
    """And back again, as (N, C times the others)."""
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1).reshape(shape[0], -1)


@ieee
def linear_cross_entropy(x, linear_weight, target, linear_bias=None, grad=ONE, reduction="mean", **options):
    """(loss, dx, dlinear_weight, dlinear_bias); a float32 target holds probabilities, another one class indices."""
    W = linear_weight.reshape(-1, linear_weight.shape[-1])
    shape = (len(x), *linear_weight.shape[:-1])
    z, _ = linear.forward(x, W, None if linear_bias is None else linear_bias.reshape(-1))
    options |= {"reduction": reduction, "grad": np.reshape(grad, -1) if reduction == "none" else ONE}
    if target.dtype == np.float32:
        loss, dz = cross_entropy_of_probabilities(rows_of(z, shape), rows_of(target, shape), **options)[:2]
    else:
        loss, dz = cross_entropy(rows_of(z, shape), target.reshape(-1), **options)[:2]
    gradients = linear.backward(logits_of(dz, shape), x, W, None)
    if reduction != "none":
        gradients = [g * np.float32(grad) for g in gradients]
    dx, dweight, dbias = gradients
    return loss, dx, dweight.reshape(linear_weight.shape), dbias.reshape(shape[1:])
