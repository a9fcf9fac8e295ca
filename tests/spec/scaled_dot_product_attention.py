"""scaled_dot_product_attention of one head, and its gradients."""

import numpy as np

from . import matmul, softmax
from .arithmetic import float32, ieee


@ieee
def forward(query, key, value, mask, scale):
    """(output, weights): query times scale, its products with the keys, plus the mask (or None), softmax, products.

    A row that a mask hides entirely has weights 0.
    """
    scores = matmul.forward(query * float32(scale), key.T)
    if mask is not None:
        scores = scores + mask
        hidden = np.all(scores == -np.inf, axis=-1, keepdims=True)
        weights = np.where(hidden, float32(0), softmax.softmax(np.where(hidden, float32(0), scores)))
    else:
        weights = softmax.softmax(scores)
    return matmul.forward(weights, value), weights


@ieee
def backward(grad, query, key, value, weights, scale):
    """(dquery, dkey, dvalue, the gradient of the scores, which is the mask's)."""
    dweights, dvalue = matmul.backward(grad, weights, value)
    dscores = softmax.softmax_gradient(dweights, weights)
    dquery, dkey = matmul.backward(dscores, query * float32(scale), key.T)
    return dquery * float32(scale), dkey.T, dvalue, dscores
