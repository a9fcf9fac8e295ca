"""matmul: torch.matmul's shapes as products, and the gradients."""

import numpy as np

from .arithmetic import ieee
from .orders import product, sum_columns, sum_row


def forward(input, other):
    """A product for every matrix of the broadcast batch; a vector is a row on the left, a column on the right.

    The dot product of two vectors is a sum, by the sum rule, of their rounded products.
    """
    if input.ndim == other.ndim == 1:
        return dot_product(input, other)
    A, B = as_matrices(input, other)
    C = product(A, B)
    return C.reshape(
        C.shape[:-2] + (() if input.ndim == 1 else C.shape[-2:-1]) + (() if other.ndim == 1 else C.shape[-1:])
    )


def backward(grad, input, other):
    """(dinput, dother): products again, grad B^T and A^T grad for every matrix of the batch.

    An operand of one or two dimensions that meets a batch is shared by it. Its gradient is one product, whose K runs
    over the batch (row-major) and, within each matrix of it, over grad's rows (for other) or columns (for input). An
    operand that is broadcast otherwise has its products summed by the sum rule, over the flattened index of the
    broadcast dimensions.
    """
    A, B = as_matrices(input, other)
    batch = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    g = grad.reshape(*batch, A.shape[-2], B.shape[-1])
    if A.ndim == 2 and B.ndim > 2:
        dA = product(np.moveaxis(g, -2, 0).reshape(len(A), -1), transposed(B).reshape(-1, A.shape[-1]))
    else:
        dA = sum_to_shape(product(g, transposed(B)), A.shape)
    if B.ndim == 2 and A.ndim > 2:
        dB = product(A.reshape(-1, len(B)).T, g.reshape(-1, B.shape[-1]))
    else:
        dB = sum_to_shape(product(transposed(A), g), B.shape)
    return dA.reshape(input.shape), dB.reshape(other.shape)


@ieee
def dot_product(x, y):
    return sum_row(np.asarray(x, np.float32) * np.asarray(y, np.float32))


def as_matrices(input, other):
    return input[None, :] if input.ndim == 1 else input, other[:, None] if other.ndim == 1 else other


def transposed(matrices):
    return np.swapaxes(matrices, -1, -2)


def sum_to_shape(x, shape):
    """The gradient of an argument of this shape that was broadcast to x's: the sum rule over the flattened index."""
    padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
    summed = [d for d in range(x.ndim) if padded[d] != x.shape[d]]
    if not summed:
        return x.reshape(shape)
    kept = [d for d in range(x.ndim) if d not in summed]
    count = int(np.prod([x.shape[d] for d in summed]))
    size = int(np.prod([x.shape[d] for d in kept]))
    return sum_columns(np.transpose(x, summed + kept).reshape(count, size)).reshape(shape)
