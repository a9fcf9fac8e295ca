"""A product of integer matrices: whole numbers stay whole."""

import torch

from pytorch_ext.functional import matmul


def compute():
    a = torch.tensor([[1, 2, 3], [4, 5, 6]])
    b = torch.tensor([[7, 8, 9], [10, 11, 12], [13, 14, 15]])
    return {"product": matmul(a, b)}


if __name__ == "__main__":
    print(compute()["product"])
