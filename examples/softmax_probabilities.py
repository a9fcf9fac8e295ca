"""Logits become probabilities: p_i = exp(z_i) / sum_j exp(z_j), every row sums to 1, and the gradient flows back."""

import torch

import pytorch_ext.functional as F


def load_data():
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.rand(64, 10, generator=generator) - 5
    return logits, torch.rand(64, 10, generator=generator)


def compute(logits, upstream):
    logits = logits.clone().requires_grad_()
    probabilities = F.softmax(logits, dim=1)
    probabilities.backward(upstream)
    return {
        "probabilities": probabilities.detach(),
        "row sums": probabilities.detach().sum(dim=1),
        "logits.grad": logits.grad,
    }


if __name__ == "__main__":
    for name, value in compute(*load_data()).items():
        print(name, tuple(value.shape), value.flatten()[:5])
