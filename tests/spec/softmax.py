"""softmax and log_softmax along the last dimension, and their gradients."""

import numpy as np

from .arithmetic import float32, fma, ieee
from .functions import exp_nonpositive, log
from .orders import sum_row

ZERO, ONE = float32(0), float32(1)


@ieee
def parts(x):
    """(x - m, e, s): m is the row's largest element + 0, e = e^(x - m), s the sum of e."""
    shifted = x - (np.max(x, axis=-1, keepdims=True, initial=-np.inf) + ZERO)
    e = exp_nonpositive(shifted)
    return shifted, e, sum_row(e)[..., None]


@ieee
def softmax(x):
    """e times the reciprocal of s."""
    _, e, s = parts(x)
    return e * (ONE / s)


@ieee
def log_softmax(x):
    """(x - m) - log(s)."""
    shifted, _, s = parts(x)
    return shifted - log(s)


@ieee
def softmax_gradient(g, y):
    """y (g - the sum of y g)."""
    return y * (g - sum_row(y * g)[..., None])


@ieee
def log_softmax_gradient(g, y):
    """g - e^y (the sum of g), e^y as softmax has it: +0 below -87; one fma."""
    return fma(-exp_nonpositive(y), sum_row(g)[..., None], g)


VALUE = {"softmax": softmax, "log_softmax": log_softmax}
GRADIENT = {"softmax": softmax_gradient, "log_softmax": log_softmax_gradient}
