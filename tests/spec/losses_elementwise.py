"""mse_loss, binary_cross_entropy and binary_cross_entropy_with_logits: value and gradients, each operation as written.

A loss is three functions of input x, target y and the weight p of the positive class (used by the last one alone): the
value of an element and its slopes, the derivatives by x and by y. x and y have their common shape here.
"""

import numpy as np

from .arithmetic import float32, fma, ieee, maximum
from .functions import exp, log, log1p, sigmoid
from .orders import sum_row

ZERO, ONE, TWO = float32(0), float32(1), float32(2)
LOWEST_LOG, SMALLEST_DENOMINATOR = float32(-100), float32(1e-12)


def _total(x):
    return sum_row(x.reshape(-1))


class MseLoss:
    """(x - y)^2"""

    def value(x, y, p):
        d = x - y
        return d * d

    def input_slope(x, y, p):
        return TWO * (x - y)

    def target_slope(x, y, p):
        return -(TWO * (x - y))


class BinaryCrossEntropy:
    """(y - 1) log(1 - x) - y log(x): neither logarithm below -100 in the value, the denominator of the slope by x not
    below 1e-12, the slope by y not limited."""

    def value(x, y, p):
        log_x, log_rest = maximum(log(x), LOWEST_LOG), maximum(log1p(-x), LOWEST_LOG)
        return (y - ONE) * log_rest - y * log_x

    def input_slope(x, y, p):
        return (x - y) / maximum((ONE - x) * x, SMALLEST_DENOMINATOR)

    def target_slope(x, y, p):
        return log1p(-x) - log(x)


class BinaryCrossEntropyWithLogits:
    """max(x, 0) - x y + log(1 + e^-|x|)"""

    def value(x, y, p):
        return (maximum(x, ZERO) - x * y) + log1p(exp(-np.abs(x)))

    def input_slope(x, y, p):
        return sigmoid(x) - y

    def target_slope(x, y, p):
        return -x


class BinaryCrossEntropyWithPosWeight:
    """(1 - y) x + (1 + (p - 1) y) softplus(-x)"""

    def log_weight(y, p):
        return fma(p - ONE, y, ONE)

    def softplus_of_negative(x):
        return maximum(-x, ZERO) + log1p(exp(-np.abs(x)))

    def value(x, y, p):
        weighted = BinaryCrossEntropyWithPosWeight.log_weight(y, p)
        return fma(ONE - y, x, weighted * BinaryCrossEntropyWithPosWeight.softplus_of_negative(x))

    def input_slope(x, y, p):
        return fma(BinaryCrossEntropyWithPosWeight.log_weight(y, p), sigmoid(x), -(p * y))

    def target_slope(x, y, p):
        return fma(p - ONE, BinaryCrossEntropyWithPosWeight.softplus_of_negative(x), -x)


def _loss(name, pos_weight):
    if name == "binary_cross_entropy_with_logits":
        return BinaryCrossEntropyWithLogits if pos_weight is None else BinaryCrossEntropyWithPosWeight
    return {"mse_loss": MseLoss, "binary_cross_entropy": BinaryCrossEntropy}[name]


def _divisor(name, x, weight, mean_weight):
    """A weighted mean of mse_loss divides by the sum of the weights as they were given, before they were broadcast."""
    if name == "mse_loss" and weight is not None:
        return _total(weight if mean_weight is None else mean_weight)
    return float32(x.size)


@ieee
def forward(name, x, y, weight=None, pos_weight=None, reduction="mean", mean_weight=None):
    """The values, one mul by the weight, the sum rule over all of them in row-major order, one div by the divisor."""
    value = _loss(name, pos_weight).value(x, y, pos_weight)
    if weight is not None:
        value = value * weight
    if reduction == "none":
        return value
    total = _total(value)
    return total if reduction == "sum" else total / _divisor(name, x, weight, mean_weight)


@ieee
def backward(name, grad, x, y, weight=None, pos_weight=None, reduction="mean", mean_weight=None):
    """(dx, dy): slope, one mul by the weight, one mul by s, which is div(grad, divisor) for a mean, else grad."""
    loss = _loss(name, pos_weight)
    scale = grad / _divisor(name, x, weight, mean_weight) if reduction == "mean" else grad
    slopes = loss.input_slope(x, y, pos_weight), loss.target_slope(x, y, pos_weight)
    return tuple((slope if weight is None else slope * weight) * scale for slope in slopes)
