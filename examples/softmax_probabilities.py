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
    return {"probabilities": probabilities.detach(), "logits.grad": logits.grad}


if __name__ == "__main__":
    figures = compute(*load_data())
    print("first row:", figures["probabilities"][0])
    print("row sums:", figures["probabilities"].sum(dim=1)[:5])
    print("gradient of the first row:", figures["logits.grad"][0])
