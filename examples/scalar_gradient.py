"""Gradients of one weight and one bias: z = x w + b, J = (z - y)^2, so dJ/dw = 2 (z - y) x and dJ/db = 2 (z - y)."""

import torch

import pytorch_ext.functional as F


def compute():
    x, y = torch.tensor(5.0), torch.tensor(0.0)
    w = torch.tensor(1.0, requires_grad=True)
    b = torch.tensor(3.0, requires_grad=True)
    z = x * w + b
    loss = F.mse_loss(z, y)
    loss.backward()
    return {"loss": loss.detach(), "w.grad": w.grad, "b.grad": b.grad}


if __name__ == "__main__":
    for name, value in compute().items():
        print(name, value.item())
