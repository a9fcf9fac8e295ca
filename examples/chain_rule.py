"""The chain rule by hand and by autograd: J = (w x + b - y)^2, dJ/dw = 2 (w x + b - y) x = 2 (-0.5) 2 = -2."""

import torch

import pytorch_ext.functional as F


def compute():
    x, y = torch.tensor(2.0), torch.tensor(3.0)
    w = torch.tensor(1.0, requires_grad=True)
    b = torch.tensor(0.5, requires_grad=True)
    loss = F.mse_loss(w * x + b, y)
    loss.backward()
    return {"loss": loss.detach(), "w.grad": w.grad, "b.grad": b.grad}


if __name__ == "__main__":
    for name, value in compute().items():
        print(name, value.item())
