"""Activations: value and gradient, each operation as written, in this order.

gradient(g, saved) is g times the derivative, where `saved` is the output y for relu, sigmoid and tanh, and the input z
for gelu, gelu_tanh and silu.
"""

import numpy as np

from .arithmetic import float32, fma, ieee
from .functions import erf, exp, sigmoid, tanh

ZERO, HALF, ONE = float32(0), float32(0.5), float32(1)
SQRT_HALF = float32(0.70710678118654752440)
DENSITY_AT_ZERO = float32(0.39894228040143267794)  # 1 / sqrt(2 pi)
SQRT_TWO_OVER_PI = float32(0.79788456080286535588)
CUBIC, THREE_CUBIC = float32(0.044715), float32(0.134145)


def relu(z):
    """NaN stays NaN; -0 stays -0."""
    return np.where(z < 0, ZERO, z)


def relu_gradient(g, y):
    """Zero where y <= 0; g where y is positive or NaN."""
    return np.where(y <= 0, ZERO, g)


@ieee
def sigmoid_gradient(g, y):
    return g * (y * (ONE - y))


@ieee
def tanh_gradient(g, y):
    return g * fma(-y, y, ONE)


def _normal_distribution(z):
    return HALF * (ONE + erf(z * SQRT_HALF))


@ieee
def gelu(z):
    """z Phi(z), Phi(z) = (1 + erf(z / sqrt 2)) / 2."""
    return z * _normal_distribution(z)


@ieee
def gelu_gradient(g, z):
    """Phi(z) + z e^(-z^2 / 2) / sqrt(2 pi)."""
    density = DENSITY_AT_ZERO * exp((z * z) * -HALF)
    return g * fma(z, density, _normal_distribution(z))


def _gelu_tanh_inner(z):
    return SQRT_TWO_OVER_PI * fma(CUBIC, (z * z) * z, z)


@ieee
def gelu_tanh(z):
    """z (1 + tanh(u)) / 2, u = sqrt(2 / pi) (z + 0.044715 z^3)."""
    return (HALF * z) * (ONE + tanh(_gelu_tanh_inner(z)))


@ieee
def gelu_tanh_gradient(g, z):
    t = tanh(_gelu_tanh_inner(z))
    slope = SQRT_TWO_OVER_PI * fma(THREE_CUBIC, z * z, ONE)
    right = ((HALF * z) * fma(-t, t, ONE)) * slope
    return g * fma(HALF, ONE + t, right)


@ieee
def silu(z):
    """z sigmoid(z)."""
    return z * sigmoid(z)


@ieee
def silu_gradient(g, z):
    s = sigmoid(z)
    return g * (s * fma(z, ONE - s, ONE))


VALUE = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
GRADIENT = {
    "relu": relu_gradient,
    "sigmoid": sigmoid_gradient,
    "tanh": tanh_gradient,
    "gelu": gelu_gradient,
    "gelu_tanh": gelu_tanh_gradient,
    "silu": silu_gradient,
}
