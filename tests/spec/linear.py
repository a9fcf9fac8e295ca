"""linear: y = f(x W^T + b), and its gradients, for two-dimensional x."""

import numpy as np

from .activations import GRADIENT, VALUE
from .orders import product, sum_columns


def forward(x, weight, bias=None, activation="none"):
    """(y, z): the product, one add of the bias, the activation."""
    z = product(x, weight.T)
    if bias is not None:
        z = z + bias
    return z if activation == "none" else VALUE[activation](z), z


def backward(grad, x, weight, saved, activation="none"):
    """(dx, dweight, dbias): products for dx and dweight, the sum rule down the rows for dbias."""
    dz = grad if activation == "none" else GRADIENT[activation](grad, saved)
    return product(dz, weight), product(np.ascontiguousarray(dz.T), x), sum_columns(dz)
