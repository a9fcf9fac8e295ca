"""``torch.nn`` with this package's kernels. Our modules subclass the stock ones: same parameters, same state_dict."""

import torch
from torch.nn import *  # noqa: F403

from . import functional

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Dropout",
    "GELU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "NLLLoss",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
]


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


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` with the mask of :func:`pytorch_ext.functional.dropout`."""

    def forward(self, input):
        return functional.dropout(input, self.p, self.training, self.inplace)


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU``."""

    def forward(self, input):
        return functional.relu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """``torch.nn.Sigmoid``."""

    def forward(self, input):
        return functional.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """``torch.nn.Tanh``."""

    def forward(self, input):
        return functional.tanh(input)


class GELU(torch.nn.GELU):
    """``torch.nn.GELU``."""

    def forward(self, input):
        return functional.gelu(input, approximate=self.approximate)


class SiLU(torch.nn.SiLU):
    """``torch.nn.SiLU``."""

    def forward(self, input):
        return functional.silu(input, self.inplace)


class Softmax(torch.nn.Softmax):
    """``torch.nn.Softmax``."""

    def forward(self, input):
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """``torch.nn.LogSoftmax``."""

    def forward(self, input):
        return functional.log_softmax(input, self.dim, _stacklevel=5)


class MSELoss(torch.nn.MSELoss):
    """``torch.nn.MSELoss``."""

    def forward(self, input, target):
        return functional.mse_loss(input, target, reduction=self.reduction)


class BCELoss(torch.nn.BCELoss):
    """``torch.nn.BCELoss``."""

    def forward(self, input, target):
        return functional.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss``."""

    def forward(self, input, target):
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``."""

    def forward(self, input, target):
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss):
    """``torch.nn.NLLLoss``."""

    def forward(self, input, target):
        return functional.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)
