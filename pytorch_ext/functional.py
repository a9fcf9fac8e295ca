"""``torch.nn.functional`` with this package's kernels: our functions first, the stock ones for everything else."""

from torch.nn.functional import *  # noqa: F403

from .ops.linear import linear

__all__ = ["linear"]


def __getattr__(name):
    import torch.nn.functional as stock

    return getattr(stock, name)
