"""The numerics contract in Triton: its operations, its functions, its orders. The twin of csrc/numerics/.

In float32 a kernel uses + - * of two operands and what stands here, nothing else: each is one IEEE operation rounded to
nearest, since no launch lets the compiler fuse a product with a sum. A minus sign, ``/``, ``tl.exp``, ``tl.sum``,
``tl.max`` and the like are not that. float64 is outside the contract: the same orders, with the functions of the
device's own library.
"""

import triton.language as tl

from . import launch
from .launch import device_function


def _constants(*texts):
    return tl.constexpr(tuple(float.fromhex(text) for text in texts))


# Polynomials as csrc/numerics/functions.h has them, the highest coefficient first.
EXP = _constants("0x1.6ac36cp-10", "0x1.123da6p-7", "0x1.555858p-5", "0x1.55548cp-3", "0x1.fffffcp-2", "1", "1")
LOG = _constants(
    *("-0x1.38c916p-4", "0x1.05742ap-3", "-0x1.0d817ap-3", "0x1.22d672p-3", "-0x1.547296p-3"),
    *("0x1.99a032p-3", "-0x1.000226p-2", "0x1.555554p-2"),
)
TANH = _constants("-0x1.99296cp-8", "0x1.58e330p-6", "-0x1.b91e62p-5", "0x1.110ceep-3", "-0x1.55554ap-2")
ERF = _constants(
    "-0x1.3ba9cep-11", "0x1.479c9ep-8", "-0x1.b69b96p-6", "0x1.ce1b86p-4", "-0x1.8126ecp-2", "0x1.06eba6p-3"
)
LOG_ERFC = _constants(
    *("0x1.9db7b4p-13", "-0x1.90a096p-9", "0x1.6d0ca4p-6", "-0x1.aa2b46p-4"),
    *("-0x1.462b88p-1", "-0x1.20b48ap+0", "-0x1.71989ep-13"),
)
LOG2_E = tl.constexpr(float.fromhex("0x1.715476p0"))
LN2_HIGH, LN2_LOW = (tl.constexpr(float.fromhex(t)) for t in ("0x1.62e430p-1", "-0x1.05c610p-29"))
ROUNDER = tl.constexpr(float.fromhex("0x1.8p23"))  # adding 1.5 * 2^23 rounds to an integer
BIASED_ROUNDER = tl.constexpr(float.fromhex("0x1.8000fep23"))  # the same + 127: a biased exponent
INFINITY = tl.constexpr(float("inf"))  # no NaN: Triton compares the globals that two functions use

INTERPRETED = tl.constexpr(launch.INTERPRETED)

# The orders of csrc/numerics/order.h.
PRODUCT_CHUNK = tl.constexpr(256)
SUM_LANES = tl.constexpr(64)
SUM_SEGMENT = tl.constexpr(4096)


# ---- operations -----------------------------------------------------------------------------------------------------


@device_function
def constant(x, value: tl.constexpr):
    """In x's type: among the arguments of tl.fma some versions round a number to float32 first."""
    return tl.full(x.shape, value, x.dtype)


@device_function
def negative(x):
    """-x: the sign alone. Before Triton 3.9 a minus sign is a subtraction from +0, which takes +0 to +0."""
    return x * -1.0


@device_function
def div(a, b):
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@device_function
def sqrt(a):
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@device_function
def maximum(a, b):
    """By comparison and selection, so that -0 and NaN behave alike everywhere: where either is NaN, b."""
    return tl.where(a > b, a, b)


@device_function
def minimum(a, b):
    return tl.where(a < b, a, b)


@device_function
def bits(a):
    return a.to(tl.int32, bitcast=True)


@device_function
def from_bits(a):
    return a.to(tl.float32, bitcast=True)


@device_function
def polynomial(x, coefficients: tl.constexpr, count: tl.constexpr):
    """Horner's rule in fma."""
    p = tl.fma(x, coefficients[0], coefficients[1])
    for i in tl.static_range(2, count):
        p = tl.fma(p, x, coefficients[i])
    return p


# ---- storage: float16 and bfloat16 are computed in float32 ----------------------------------------------------------


@device_function
def widen(x):
    """Exact."""
    if x.dtype == tl.float64:
        return x
    elif INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter's own conversions are neither exact nor rounded
        return from_bits(x.to(tl.uint16, bitcast=True).to(tl.int32) << 16)
    else:
        return x.to(tl.float32)


@device_function
def narrow(x, dtype: tl.constexpr):
    """Rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        b = bits(x)
        rounded = (b + 0x7FFF + (b >> 16 & 1)) >> 16
        quiet_nan = (b >> 16) | 0x40
        return tl.where(x == x, rounded, quiet_nan).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


# ---- exp ------------------------------------------------------------------------------------------------------------


@device_function
def exp_polynomial(x, n):
    """exp(x - n ln2), with ln2 in two parts."""
    r = tl.fma(n, -LN2_LOW, tl.fma(n, -LN2_HIGH, x))
    return polynomial(r, EXP, 7)


@device_function
def exp(x):
    """e^x over the whole range; 2^n in two factors, so that neither overflows nor a subnormal is rounded twice."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = minimum(89.0, maximum(-104.0, x))  # in this order NaN stays
        shifted = tl.fma(x, LOG2_E, ROUNDER)
        p = exp_polynomial(x, shifted - ROUNDER)
        k = bits(shifted) - 0x4B400000
        half = k >> 1
        return p * from_bits((half + 127) << 23) * from_bits((k - half + 127) << 23)


@device_function
def exp_nonpositive(x):
    """e^x for x <= 0, as softmax has it: +0 below -87, by definition."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        shifted = tl.fma(x, LOG2_E, BIASED_ROUNDER)
        e = exp_polynomial(x, shifted - BIASED_ROUNDER) * from_bits(bits(shifted) << 23)
        return tl.where(x < -87.0, 0.0, e)


# ---- logarithms -----------------------------------------------------------------------------------------------------


@device_function
def centred_exponent(b):
    """The exponent of the power of two that takes a positive float with these bits into [sqrt(1/2), sqrt(2))."""
    return (b - 0x3F3504F3) >> 23


@device_function
def log_of_parts(e, f):
    """e ln2 + log(1 + f)."""
    f2 = f * f
    tail = tl.fma(polynomial(f, LOG, 8) * f, f2, f2 * -0.5)
    return tl.fma(e, LN2_HIGH, f + tl.fma(e, LN2_LOW, tail))


@device_function
def with_special_logarithms(x, y):
    """y where x is positive and finite; +inf and NaN pass through, 0 gives -inf, below 0 NaN."""
    y = tl.where(x < INFINITY, y, x)
    y = tl.where(x == 0.0, -INFINITY, y)
    return tl.where(x < 0.0, float("nan"), y)


@device_function
def log(x):
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        subnormal = x < 1.1754943508222875e-38
        b = bits(tl.where(subnormal, x * 8388608.0, x))
        exponent = centred_exponent(b)
        f = from_bits(b - (exponent << 23)) - 1.0
        e = exponent.to(tl.float32) - tl.where(subnormal, 23.0, 0.0)
        return with_special_logarithms(x, log_of_parts(e, f))


@device_function
def log1p(x):
    """The rounded sum 1 + x only chooses e; f = (1 + x) / 2^e - 1 is taken from x itself."""
    total = 1.0 + x
    if x.dtype == tl.float64:  # Kahan: what the rounding of the sum lost is made up for by the quotient
        y = tl.log(total) * (x / (total - 1.0))
        return tl.where(total == 1.0, x, tl.where(total < INFINITY, y, total))
    else:
        exponent = centred_exponent(bits(total))
        scale = from_bits(0x40800000 - (exponent << 23))  # 4 / 2^e
        f = tl.fma(x * 0.25, scale, tl.fma(scale, 0.25, -1.0))
        y = with_special_logarithms(total, log_of_parts(exponent.to(tl.float32), f))
        return tl.where(tl.abs(x) < 1.4901161193847656e-08, x, y)


# ---- sigmoid, tanh, erf ---------------------------------------------------------------------------------------------


@device_function
def sigmoid(x):
    """e^-|x| cannot overflow, so the result underflows gradually."""
    e = exp(negative(tl.abs(x)))
    return div(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@device_function
def with_sign_of(x, magnitude):
    """magnitude >= +0 with the sign of x."""
    if x.dtype == tl.float64:
        return tl.where(x < 0.0, negative(magnitude), magnitude)
    else:
        return from_bits(bits(magnitude) | (bits(x) & -0x80000000))


@device_function
def tanh(x):
    a = tl.abs(x)
    square = x * x
    if x.dtype == tl.float64:  # for small a, where 1 - 2 / ... cancels, Lambert's continued fraction
        depth = 9.0 + square / (11.0 + square / 13.0)
        small = a / (1.0 + square / (3.0 + square / (5.0 + square / (7.0 + square / depth))))
        large = 1.0 - 2.0 / (tl.exp(a + a) + 1.0)
        return with_sign_of(x, tl.where(a < 0.25, small, large))
    else:
        small = tl.fma(square * polynomial(square, TANH, 5), a, a)
        e = exp(minimum(20.0, a + a))  # in this order NaN stays
        large = 1.0 - div(2.0, e + 1.0)
        return with_sign_of(x, tl.where(a < 0.55, small, large))


@device_function
def erf(x):
    if x.dtype == tl.float64:
        return tl.erf(x)
    else:
        a = minimum(4.0, tl.abs(x))  # erf(4) rounds to 1; in this order NaN stays
        small = tl.fma(polynomial(x * x, ERF, 6), a, a)
        large = 1.0 - exp_nonpositive(polynomial(a, LOG_ERFC, 7))
        return with_sign_of(x, tl.where(a < 0.9, small, large))
