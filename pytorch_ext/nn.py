"""``torch.nn`` with this package's kernels. Our modules subclass the stock ones: same parameters, same state_dict."""

import math

import torch
from torch.nn import *  # noqa: F403

from . import functional, fusion
from .attention import MultiheadAttention
from .ops.checks import expect

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Dropout",
    "GELU",
    "LazyLinear",
    "Linear",
    "LinearCrossEntropyLoss",
    "LogSoftmax",
    "MSELoss",
    "MultiheadAttention",
    "NLLLoss",
    "ReLU",
    "Sequential",
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

    activation = None  # of a module that was made as torch's own and converted

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, activation=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    def forward(self, input):
        return functional.linear(input, *fusion.weight_and_bias(self), activation=self.activation)

    def extra_repr(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return super().extra_repr() + activation


class LazyLinear(torch.nn.LazyLinear):
    """``torch.nn.LazyLinear``; becomes a :class:`Linear` at its first call."""

    cls_to_become = Linear
    activation = None
    forward = Linear.forward


class Sequential(torch.nn.Sequential):
    """``torch.nn.Sequential``; a :class:`Linear` and the activation right after it run as one kernel.

    Each module on its own stays what it is. Where somebody watches one of the two (a hook), both run one by one.
    """

    def forward(self, input):
        linear = None  # waits for the module after it
        for module in self:
            if linear is not None:
                kind = fusion.kind_of_module(module)
                if kind is not None:
                    input = functional.linear(input, *fusion.weight_and_bias(linear), activation=kind)
                    linear = None
                    continue
                input = Linear.forward(linear, input)
            if is_fusable(module):
                linear = module
            else:
                linear, input = None, module(input)
        return input if linear is None else Linear.forward(linear, input)


def is_fusable(module):
    """Whether calling this module is one product and nothing else, so that an activation can join it."""
    cls = type(module)
    if cls is not Linear and getattr(cls, "forward", None) is not Linear.forward:  # a parametrized one is a subclass
        return False
    return module.activation is None and fusion.is_unwatched(module)


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


# torch has it from 2.13 on; before that it is made here, with the same parameters and state_dict.
StockLinearCrossEntropyLoss = getattr(torch.nn, "LinearCrossEntropyLoss", None)


class LinearCrossEntropyLoss(StockLinearCrossEntropyLoss or torch.nn.modules.loss._WeightedLoss):
    """``torch.nn.LinearCrossEntropyLoss``, whose ``linear`` is one of this package.

    See :func:`pytorch_ext.functional.linear_cross_entropy`; it always runs in chunks, and ``options`` change nothing.
    """

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        out_features=(),
        bias=False,
        device=None,
        dtype=None,
        reduction="mean",
        weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        options=None,
    ):
        op = "LinearCrossEntropyLoss"
        fits = weight is None or weight.shape == (num_classes,)
        expect(fits, op, f"weight ({num_classes},)", None if weight is None else tuple(weight.shape))
        expect(0 <= label_smoothing <= 1, op, "label_smoothing between 0 and 1", label_smoothing)
        torch.nn.modules.loss._WeightedLoss.__init__(self, weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        outputs = math.prod(out_features, start=num_classes)
        self.linear = Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input, target):
        sizes, bias = (self.num_classes, *self.out_features), self.linear.bias
        return functional.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*sizes, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(sizes),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )


class NLLLoss(torch.nn.NLLLoss):
    """``torch.nn.NLLLoss``."""

    def forward(self, input, target):
        return functional.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


fusion.MODULES.update({ReLU: "relu", Sigmoid: "sigmoid", Tanh: "tanh", GELU: "gelu", SiLU: "silu"})


def _refuse_script(module):
    raise RuntimeError(
        f"torch.jit.script: expected torch's own modules, got {type(module).__module__}.{type(module).__name__}; "
        "pytorch_ext.revert(model) gives a converted model them back, and torch.jit.trace takes both"
    )


for _name in set(__all__) - {"functional"}:
    globals()[_name].__prepare_scriptable__ = _refuse_script
