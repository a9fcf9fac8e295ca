"""matmul: torch.matmul's shapes, each one a batch of products, or a dot product; the gradients are products too."""

import torch

from .product import as_batches, product
from .reduce import sum_rows, sum_to_size


def as_left(t):
    """A vector on the left is a row."""
    return t[None] if t.dim() == 1 else t


def as_right(t):
    """A vector on the right is a column."""
    return t[:, None] if t.dim() == 1 else t


def batch_of(A, B):
    return torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])


def product_of(A, B):
    """A (..., M, K) times B (..., K, N), both of two dimensions or more."""
    batch = batch_of(A, B)
    rows, sizes = A.shape[-2], (*batch, A.shape[-2], B.shape[-1])
    if B.dim() == 2:  # one B for the whole batch: one product of all rows of A
        return product(A.reshape(1, batch.numel() * rows, A.shape[-1]), B[None])[0].view(sizes)
    return product(as_batches(A, batch), as_batches(B, batch))[0].view(sizes)


def matmul_forward(input, other):
    if input.dim() == other.dim() == 1:  # a sum, so that it is read as fast as memory gives
        return sum_rows(input[None], times=other[None]).view(())
    output = product_of(as_left(input), as_right(other))
    if other.dim() == 1:
        output = output.squeeze(-1)
    if input.dim() == 1:
        output = output.squeeze(-2)
    return output


def summed_products(A, B, sizes):
    """A B of every matrix of the batch, summed to ``sizes`` where that was broadcast: 16 bits only at the end."""
    dtype = A.dtype
    if (*batch_of(A, B), A.shape[-2], B.shape[-1]) != tuple(sizes) and dtype.itemsize == 2:
        A, B = A.float(), B.float()
    return sum_to_size(product_of(A, B), sizes).to(dtype)


# A matrix that the whole batch shares has one product as its gradient, whose sum runs over the batch and its rows. What
# is broadcast otherwise has a product for every matrix of the batch, and their sum by the sum rule.


def left_gradient(grad, A, B):
    if A.dim() > 2 or B.dim() == 2:
        return summed_products(grad, B.mT, A.shape)
    terms = grad.shape[:-2].numel() * grad.shape[-1]
    return product_of(grad.movedim(-2, 0).reshape(A.shape[0], terms), B.mT.reshape(terms, A.shape[1]))


def right_gradient(grad, A, B):
    if B.dim() > 2 or A.dim() == 2:
        return summed_products(A.mT, grad, B.shape)
    terms = grad.shape[:-2].numel() * grad.shape[-2]
    return product_of(A.reshape(terms, B.shape[0]).t(), grad.reshape(terms, B.shape[1]))


def matmul_backward(grad, input, other, mask):
    """(dinput, dother), None where the mask says so."""
    A, B = as_left(input), as_right(other)
    g = grad.unsqueeze(-1) if other.dim() == 1 else grad
    g = g.unsqueeze(-2) if input.dim() == 1 else g
    dinput = left_gradient(g, A, B).view(input.shape) if mask[0] else None
    dother = right_gradient(g, A, B).view(other.shape) if mask[1] else None
    return dinput, dother
