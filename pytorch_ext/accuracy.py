"""The accuracy rule: how far a result may be from the same computation in float64.

max|error| <= max(2 x stock's error in the same dtype, c u sum of |terms|), and half an ulp more in a 16-bit dtype.
"""

import torch

# c: times the unit roundoff u of the accumulator and the sum of the terms' magnitudes.
PRODUCT_TERMS, SUM_TERMS = 64, 16


def unit_roundoff(dtype):
    return torch.finfo(dtype).eps / 2


def allowed_error(reference, stock, dtype, magnitude=None, factor=SUM_TERMS):
    """The largest error allowed to each element of a result of this dtype.

    reference: the result in float64; stock: torch's in ``dtype``; magnitude: the sums of |terms|, by default the
    reference's own magnitude.
    """
    magnitude = reference.abs() if magnitude is None else magnitude.expand_as(reference)
    if dtype == torch.float64:  # no wider reference: the stock result is one float64 computation beside another
        magnitude = magnitude.max().expand_as(reference)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    bound = factor * unit_roundoff(accumulator) * magnitude
    if dtype != accumulator:
        bound = bound + unit_roundoff(dtype) * reference.abs()
    return torch.maximum(2 * (stock.double() - reference).abs().max(), bound) + torch.finfo(dtype).tiny
