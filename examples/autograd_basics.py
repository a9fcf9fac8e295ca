"""Autograd's rules, met by the layers' own operators: derivatives, accumulation, retain_graph, no_grad, detach."""

import torch

import pytorch_ext.functional as F
from pytorch_ext.functional import matmul


def cubic():
    """d/dx (x^3 + 2 x + 1) = 3 x^2 + 2, at 2: 14. The sum is the product of powers and coefficients."""
    x = torch.tensor(2.0, requires_grad=True)
    powers = torch.stack([x**3, x, torch.ones(())])
    matmul(powers, torch.tensor([1.0, 2.0, 1.0])).backward()
    return x.grad


def quadratic():
    """d/dx (x^2 + 3 x + 1) = 2 x + 3, at 2: 7."""
    x = torch.tensor(2.0, requires_grad=True)
    y = F.mse_loss(x, torch.tensor(0.0)) + 3 * x + 1
    y.backward()
    return x.grad


def dot_product():
    """The gradient of sum(a * b) is b for a, and a for b."""
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.tensor([3.0, 4.0], requires_grad=True)
    matmul(a, b).backward()
    return a.grad, b.grad


def two_passes():
    """d/dx x^2 = 2 at 1; a second pass through the same graph adds another 2."""
    x = torch.tensor(1.0, requires_grad=True)
    y = F.mse_loss(x, torch.tensor(0.0))
    y.backward(retain_graph=True)
    y.backward()
    return x.grad


def without_gradients():
    """1 where a gradient is recorded, 0 where it is not: inside no_grad, after detach, and otherwise."""
    x, w = torch.ones(1, 2), torch.ones(3, 2, requires_grad=True)
    with torch.no_grad():
        inside = F.linear(x, w)
    recorded = F.linear(x, w)
    flags = [inside.requires_grad, recorded.detach().requires_grad, recorded.requires_grad]
    return torch.tensor(flags).float()


def compute():
    a_grad, b_grad = dot_product()
    return {
        "cubic": cubic(),
        "quadratic": quadratic(),
        "a.grad": a_grad,
        "b.grad": b_grad,
        "two passes": two_passes(),
        "recorded": without_gradients(),
    }


if __name__ == "__main__":
    for name, value in compute().items():
        print(name, value.tolist())
