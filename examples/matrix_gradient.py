"""Gradients of a matrix: z = x W + b, J the mean of (z - y)^2; dJ/dW = x^T delta, dJ/db = the column sums of delta."""

import torch

import pytorch_ext.functional as F
from pytorch_ext.functional import matmul


def load_data():
    return torch.ones(2, 5), torch.arange(15.0).reshape(5, 3) / 8, torch.tensor([0.5, -1.0, 2.0]), torch.zeros(2, 3)


def compute(x, w, b, y):
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    z = matmul(x, w) + b
    loss = F.mse_loss(z, y)
    loss.backward()
    return {"loss": loss.detach(), "w.grad": w.grad, "b.grad": b.grad}


if __name__ == "__main__":
    for name, value in compute(*load_data()).items():
        print(name, value, sep="\n")
