"""``torch.nn`` with this package's kernels. Our modules subclass the stock ones: same parameters, same state_dict."""

import torch
from torch.nn import *  # noqa: F403

from . import functional

__all__ = ["Linear", "functional"]


def __getattr__(name):
    return getattr(torch.nn, name)


class Linear(torch.nn.Linear):
    """``torch.nn.Linear`` with an optional fused ``activation`` (see :func:`pytorch_ext.functional.linear`)."""

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, activation=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    def forward(self, input):
        return functional.linear(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return super().extra_repr() + activation
