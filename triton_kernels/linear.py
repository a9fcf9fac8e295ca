"""linear: y = f(x W^T + b) and its gradients; the arithmetic is in the kernels of the product, activation and sums."""

from .activation import SAVES_INPUT, activation_backward
from .product import product
from .reduce import sum_to_size


def as_matrix(t):
    """All leading dimensions as rows, as a batch of one: a view where the strides allow it."""
    rows = t.shape[:-1].numel()
    return t.reshape(1, rows, t.shape[-1])


def linear_inference(input, weight, bias, activation):
    """y alone."""
    y, _ = product(as_matrix(input), weight.t()[None], bias, activation)
    return y.view(*input.shape[:-1], weight.shape[0])


def linear_forward(input, weight, bias, activation):
    """(y, z): z = x W^T + b where the gradient needs it, else None."""
    y, z = product(as_matrix(input), weight.t()[None], bias, activation, save=activation in SAVES_INPUT)
    sizes = (*input.shape[:-1], weight.shape[0])
    return y.view(sizes), None if z is None else z.view(sizes)


def linear_backward(grad, input, weight, saved, activation, mask):
    """(dx, dweight, dbias), None where the mask says so: dz W, dz^T x and the sum of rows of dz = g f'."""
    dz = as_matrix(grad)
    if activation != "none":
        dz = activation_backward(dz, as_matrix(saved), activation)
    dx = dweight = dbias = None
    if mask[0]:
        dx = product(dz, weight[None])[0].view(input.shape)
    if mask[1]:
        dweight = product(dz.mT, as_matrix(input))[0].view(weight.shape)
    if mask[2]:
        dbias = sum_to_size(dz, weight.shape[:1])
    return dx, dweight, dbias
