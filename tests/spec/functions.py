"""exp, log, log1p, tanh, sigmoid and erf: one fixed sequence of primitive operations each.

Every function takes and returns float32 arrays. Where a branch is not taken its value is computed and dropped, so
overflow and invalid operations inside are expected.
"""

import functools

import numpy as np

from .arithmetic import INFINITY, NAN, bits, float32, fma, from_bits, ieee, maximum, minimum, polynomial

EXP = ("0x1.6ac36cp-10", "0x1.123da6p-7", "0x1.555858p-5", "0x1.55548cp-3", "0x1.fffffcp-2", 1, 1)
LOG = (
    *("-0x1.38c916p-4", "0x1.05742ap-3", "-0x1.0d817ap-3", "0x1.22d672p-3", "-0x1.547296p-3"),
    *("0x1.99a032p-3", "-0x1.000226p-2", "0x1.555554p-2"),
)
TANH = ("-0x1.99296cp-8", "0x1.58e330p-6", "-0x1.b91e62p-5", "0x1.110ceep-3", "-0x1.55554ap-2")
ERF = ("-0x1.3ba9cep-11", "0x1.479c9ep-8", "-0x1.b69b96p-6", "0x1.ce1b86p-4", "-0x1.8126ecp-2", "0x1.06eba6p-3")
LOG_ERFC = (
    *("0x1.9db7b4p-13", "-0x1.90a096p-9", "0x1.6d0ca4p-6", "-0x1.aa2b46p-4"),
    *("-0x1.462b88p-1", "-0x1.20b48ap+0", "-0x1.71989ep-13"),
)
ONE, TWO = float32(1), float32(2)
LN2_HIGH, LN2_LOW = float32("0x1.62e430p-1"), float32("-0x1.05c610p-29")


def float32_function(function):
    """Takes anything array-like as float32."""

    @functools.wraps(function)
    @ieee
    def wrapped(x):
        x = np.asarray(x, np.float32)
        return function(x.reshape(-1)).reshape(x.shape)

    return wrapped


def _exp_parts(x, shifter):
    """e^(x - n ln2) for the integer n nearest to x / ln2, and the bits of n + shifter."""
    shifted = fma(x, float32("0x1.715476p0"), shifter)
    n = shifted - shifter
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    return polynomial(r, EXP), bits(shifted)


@float32_function
def exp(x):
    """e^x over the whole range. 2^n is applied as two factors, so that a subnormal result is rounded once."""
    x = minimum(89, maximum(-104, x))
    p, shifted = _exp_parts(x, float32("0x1.8p23"))
    n = shifted - np.int32(0x4B400000)
    half = n >> 1
    return (p * from_bits((half + 127) << 23)) * from_bits((n - half + 127) << 23)


@float32_function
def exp_nonpositive(x):
    """e^x for x <= 0, as softmax has it: +0 below -87, by definition."""
    p, shifted = _exp_parts(x, float32("0x1.8000fep23"))  # the low bits are n + 127
    return np.where(x < float32(-87), float32(0), p * from_bits(shifted << 23))


def _exponent(b):
    """The exponent of the power of two that takes a positive float with these bits into [sqrt(1/2), sqrt(2))."""
    return (b - np.int32(0x3F3504F3)) >> 23


def _log_of_parts(e, f):
    """e ln2 + log(1 + f), smallest terms first."""
    square = f * f
    tail = fma(polynomial(f, LOG) * f, square, square * float32(-0.5))
    return fma(e, LN2_HIGH, f + fma(e, LN2_LOW, tail))


def _with_special_logarithms(x, y):
    """y where x is positive and finite; else x itself (+inf, NaN), -inf for 0, NaN below 0."""
    y = np.where(x < INFINITY, y, x)
    y = np.where(x == 0, -INFINITY, y)
    return np.where(x < 0, NAN, y)


@float32_function
def log(x):
    subnormal = x < float32("0x1p-126")
    b = bits(np.where(subnormal, x * float32("0x1p23"), x))
    exponent = _exponent(b)
    f = from_bits(b - (exponent << 23)) - ONE
    e = exponent.astype(np.float32) - np.where(subnormal, float32(23), float32(0))
    return _with_special_logarithms(x, _log_of_parts(e, f))


@float32_function
def log1p(x):
    """log(1 + x). The rounded sum 1 + x only chooses e; f = (1 + x) / 2^e - 1 is taken from x itself."""
    total = ONE + x
    exponent = _exponent(bits(total))
    scale = from_bits(np.int32(0x40800000) - (exponent << 23))  # 4 / 2^e
    f = fma(float32(0.25) * x, scale, fma(float32(0.25), scale, -ONE))
    y = _with_special_logarithms(total, _log_of_parts(exponent.astype(np.float32), f))
    return np.where(np.abs(x) < float32("0x1p-26"), x, y)


@float32_function
def sigmoid(x):
    """e = e^-|x| cannot overflow, so the result underflows gradually."""
    e = exp(-np.abs(x))
    return np.where(x < 0, e, ONE) / (ONE + e)


def _with_sign_of(x, magnitude):
    """magnitude >= +0 with the sign of x."""
    return from_bits(bits(magnitude) | (bits(x) & np.int32(-(2**31))))


@float32_function
def tanh(x):
    """For |x| below 0.55 a polynomial, else 1 - 2 / (e^2|x| + 1), with the sign of x."""
    a, square = np.abs(x), x * x
    small = fma(square * polynomial(square, TANH), a, a)
    large = ONE - TWO / (exp(minimum(20, a + a)) + ONE)
    return _with_sign_of(x, np.where(a < float32(0.55), small, large))


@float32_function
def erf(x):
    """For |x| below 0.9 a polynomial, else 1 - e^q(|x|), with the sign of x; from 4 on, 1."""
    a = minimum(4, np.abs(x))
    small = fma(polynomial(x * x, ERF), a, a)
    large = ONE - exp_nonpositive(polynomial(a, LOG_ERFC))
    return _with_sign_of(x, np.where(a < float32(0.9), small, large))
