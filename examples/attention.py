"""Scaled dot-product attention from two products and a softmax: softmax(Q K^T / sqrt(d)) V."""

import math

import torch

import pytorch_ext.functional as F
from pytorch_ext.functional import matmul


def load_data():
    """Q, K and V of shape (batch, tokens, features), and the gradient that arrives at the output."""
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.rand(4, 16, 32, generator=generator) - 1 for _ in range(4)]


def attend(q, k, v):
    scores = matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]))
    weights = F.softmax(scores, dim=-1)
    return matmul(weights, v), weights


def compute(q, k, v, upstream):
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    output, weights = attend(q, k, v)
    output.backward(upstream)
    return {
        "output": output.detach(),
        "weights": weights.detach(),
        "Q.grad": q.grad,
        "K.grad": k.grad,
        "V.grad": v.grad,
    }


if __name__ == "__main__":
    for name, value in compute(*load_data()).items():
        print(name, tuple(value.shape), value.flatten()[:4])
