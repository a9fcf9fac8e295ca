"""``torch.nn.functional`` with this package's kernels: our functions first, the stock ones for everything else."""

from torch.nn.functional import *  # noqa: F403

from .ops.binary_cross_entropy import binary_cross_entropy
from .ops.binary_cross_entropy_with_logits import binary_cross_entropy_with_logits
from .ops.cross_entropy import cross_entropy
from .ops.dropout import dropout
from .ops.linear import linear
from .ops.matmul import matmul
from .ops.mse_loss import mse_loss
from .ops.nll_loss import nll_loss

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "linear",
    "matmul",
    "mse_loss",
    "nll_loss",
]


def __getattr__(name):
    import torch.nn.functional as stock

    return getattr(stock, name)
