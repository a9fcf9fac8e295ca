"""``torch.nn.functional`` with this package's kernels: our functions first, the stock ones for everything else."""

from torch.nn.functional import *  # noqa: F403

from .ops.activation import gelu, relu, sigmoid, silu, tanh
from .ops.binary_cross_entropy import binary_cross_entropy
from .ops.binary_cross_entropy_with_logits import binary_cross_entropy_with_logits
from .ops.cross_entropy import cross_entropy
from .ops.dropout import dropout
from .ops.linear import linear
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.log_softmax import log_softmax
from .ops.matmul import matmul
from .ops.mse_loss import mse_loss
from .ops.nll_loss import nll_loss
from .ops.scaled_dot_product_attention import scaled_dot_product_attention
from .ops.softmax import softmax

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "gelu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "matmul",
    "mse_loss",
    "nll_loss",
    "relu",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]


def __getattr__(name):
    import torch.nn.functional as stock

    return getattr(stock, name)
