"""The backend ``triton``: one function per op, as the native library has them; None for what it does not cover.

Covered are ordinary tensors on CUDA devices, or on any device where Triton interprets its kernels.
"""

import torch

from .ops.activation import ACTIVATIONS, ActivationFunction
from .ops.checks import broadcast, expands
from .ops.cross_entropy import CrossEntropyFunction
from .ops.dropout import DropoutFunction
from .ops.linear import LinearFunction
from .ops.linear_cross_entropy import LinearCrossEntropyFunction
from .ops.losses import ElementwiseLossFunction
from .ops.matmul import MatmulFunction
from .ops.nll_loss import NllLossFunction
from .ops.paths import KERNEL_DTYPES, products_are_ieee
from .ops.scaled_dot_product_attention import DTYPES, AttentionFunction
from .ops.scaled_dot_product_attention import fits as fits_attention
from .ops.softmax import SoftmaxFunction
from .triton_coverage import alike, autocast_off, covers, in_transform, is_ordinary
from .triton_optimizers import adam_step, clip_grad_norm, sgd_step  # noqa: F401
from .triton_path import kernels, launchers


def activation(input, kind):
    if not covers(input) or kind not in ACTIVATIONS:
        return None
    return ActivationFunction.apply(input, kind)


def covers_products(input):
    """Whether products are as torch's flags ask: of float32 as it is, or on a GPU as TF32."""
    return products_are_ieee(input) or kernels.product.precision_of(input) == "tf32"


def linear(input, weight, bias, activation):
    if not covers(input, weight, optional=[bias]) or activation not in ACTIVATIONS or not covers_products(input):
        return None
    fits = input.dim() >= 1 and weight.dim() == 2 and input.shape[-1] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    operands = alike(input, weight, bias)
    if operands is None:
        return None
    with autocast_off(input):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
            return LinearFunction.apply(*operands, activation)[0]
        return launchers.linear_inference(*operands, activation)


def matmul(input, other):
    if not covers(input, other) or not covers_products(input) or min(input.dim(), other.dim()) < 1:
        return None
    inner = other.shape[max(other.dim() - 2, 0)]
    if input.shape[-1] != inner or not broadcast(input.shape[:-2], other.shape[:-2]):
        return None
    operands = alike(input, other)
    if operands is None:
        return None
    with autocast_off(input):
        return MatmulFunction.apply(*operands)


def dropout(input, p, training, inplace):
    if not covers(input) or type(p) not in (int, float) or not 0 <= p <= 1 or type(training) is not bool:
        return None
    if not training or p == 0 or input.numel() == 0:
        return input
    output = DropoutFunction.apply(input, p, kernels.dropout.dropout_key())
    return input.copy_(output) if inplace else output


def softmax_or_logarithm(input, dim, dtype, logarithm):
    if in_transform() or not is_ordinary(input) or input.is_complex() or type(dim) is not int:
        return None
    dims = max(input.dim(), 1)
    if not -dims <= dim < dims or not (dtype is None or isinstance(dtype, torch.dtype)):
        return None
    computed = input.dtype if dtype is None else dtype
    if computed not in KERNEL_DTYPES or not kernels.launch.can_run_on(input.device):
        return None
    # Stock computes in float32 under autocast for CUDA; for the CPU it has no rule.
    if dtype is None and input.is_cuda and computed != torch.float64 and torch.is_autocast_enabled("cuda"):
        computed = torch.float32
    return SoftmaxFunction.apply(input.to(computed), dim, logarithm)


def softmax(input, dim, dtype):
    return softmax_or_logarithm(input, dim, dtype, False)


def log_softmax(input, dim, dtype):
    return softmax_or_logarithm(input, dim, dtype, True)


def recorded(*tensors):
    """The tensors, as constants where no gradient is recorded: an autograd.Function is told what requires one, not that
    nobody will ask for it, and a loss would compute gradients in advance."""
    return tensors if torch.is_grad_enabled() else [t if t is None else t.detach() for t in tensors]


def loss_operands(input, others, weights, reduction):
    """The tensors of a loss as they are computed: of one dtype, under autocast float32, as in stock; else None.

    A weight is a constant to the kernels.
    """
    given = [t for t in (*others, *weights) if t is not None]
    if (
        not covers(input, *others, optional=weights)
        or type(reduction) is not int
        or any(w is not None and w.requires_grad for w in weights)
    ):
        return None
    if torch.is_autocast_enabled(input.device.type):
        if any(t.dtype == torch.float64 for t in given) != (input.dtype == torch.float64):
            return None
        operands = [t if t is None or t.dtype == torch.float64 else t.float() for t in (input, *others, *weights)]
        return recorded(*operands)
    return recorded(input, *others, *weights) if all(t.dtype == input.dtype for t in given) else None


def fits(input, weight):
    """Whether there is one weight for each class, if there are any."""
    classes = input.shape[min(1, input.dim() - 1) :][:1]
    return weight is None or (is_ordinary(weight) and weight.shape == classes)


def has_class_indices(input, target):
    """Whether the target holds one class index for every row: int64; stock takes uint8 for up to two dimensions."""
    if not is_ordinary(target) or target.device != input.device or input.dim() < 1:
        return False
    if target.dtype != torch.int64 and not (target.dtype == torch.uint8 and input.dim() <= 2):
        return False
    if input.dim() == 1:
        return target.dim() <= 1 and target.numel() == 1
    return target.shape == (input.shape[0], *input.shape[2:])


def is_int64(number):
    return type(number) is int and -(2**63) <= number < 2**63


def cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing):
    if not is_ordinary(input) or not is_ordinary(target) or input.dim() < 1 or not fits(input, weight):
        return None
    if not is_int64(ignore_index) or type(label_smoothing) not in (int, float) or label_smoothing > 1:
        return None
    if target.shape == input.shape:
        if ignore_index >= 0 or not target.is_floating_point() or not input.shape[min(1, input.dim() - 1)]:
            return None
        operands = loss_operands(input, [target], [weight], reduction)
    else:
        # Smoothed, stock refuses a target of one element for an input (C,), and with a weight uint8.
        smooths = (input.dim() > 1 or target.dim() == 0) and (weight is None or target.dtype == torch.int64)
        if not has_class_indices(input, target) or (label_smoothing > 0 and not smooths):
            return None
        operands = loss_operands(input, [], [weight], reduction)
        operands = operands and [operands[0], target, operands[1]]
    if operands is None:
        return None
    with autocast_off(input):
        return CrossEntropyFunction.apply(*operands, reduction, ignore_index, float(label_smoothing))


def linear_cross_entropy(
    input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, dtype
):
    if (
        not covers(input, linear_weight, optional=[linear_bias])
        or not is_ordinary(target)
        or not covers_products(input)
    ):
        return None
    shape, constants = linear_weight.shape, [weight, *([target] if target.is_floating_point() else [])]
    if len(shape) < 2 or input.dim() not in (1, 2) or (input.dim() == 1 and len(shape) > 2) or not shape.numel():
        return None
    of_probabilities, numbers = target.is_floating_point(), is_int64(ignore_index) and type(reduction) is int
    fit = input.shape[-1] == shape[-1] and target.shape == (*input.shape[:-1], *shape[not of_probabilities : -1])
    fit = fit and (linear_bias is None or linear_bias.shape == shape[:-1]) and target.device == input.device
    if not fit or not numbers or type(label_smoothing) not in (int, float) or label_smoothing > 1:
        return None
    if ignore_index >= 0 if of_probabilities else target.dtype != torch.int64:
        return None
    if not (weight is None or (is_ordinary(weight) and weight.shape == shape[:1])) or target.requires_grad:
        return None
    if loss_operands(input, [t for t in constants if t is not None], [weight], reduction) is None:
        return None
    autocast, operands = torch.is_autocast_enabled(input.device.type), alike(input, linear_weight, linear_bias)
    if operands is None:
        return None
    if autocast and dtype is None and operands[0].dtype != torch.float64:
        dtype = torch.float32
    x, w, bias = recorded(*operands)
    with autocast_off(input):
        return LinearCrossEntropyFunction.apply(
            x, w, target, bias, weight, reduction, ignore_index, float(label_smoothing), dtype
        )


def nll_loss(input, target, weight, reduction, ignore_index):
    if not is_ordinary(input) or not has_class_indices(input, target) or not fits(input, weight):
        return None
    operands = loss_operands(input, [], [weight], reduction)
    if operands is None or not is_int64(ignore_index):
        return None
    with autocast_off(input):
        return NllLossFunction.apply(operands[0], target, operands[1], reduction, ignore_index)


def elementwise_loss(name, input, target, weight, pos_weight, reduction):
    operands = loss_operands(input, [target], [weight, pos_weight], reduction)
    if operands is None or any(w is not None and not expands(w.shape, input.shape) for w in operands[2:]):
        return None
    with autocast_off(input):
        return ElementwiseLossFunction.apply(*operands, name, reduction)


def same_shape(*tensors):
    given = [t for t in tensors if t is not None]
    return all(is_ordinary(t) and t.shape == given[0].shape for t in given)


def mse_loss(input, target, weight, reduction):
    if not same_shape(input, target, weight):
        return None
    return elementwise_loss("mse_loss", input, target, weight, None, reduction)


def mse_loss_broadcast(input, target, weight, reduction):
    if not is_ordinary(target) or not same_shape(input, weight) or not broadcast(input.shape, target.shape):
        return None
    return elementwise_loss("mse_loss", input, target, weight, None, reduction)


def binary_cross_entropy(input, target, weight, reduction):
    if not same_shape(input, target):
        return None
    return elementwise_loss("binary_cross_entropy", input, target, weight, None, reduction)


def binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction):
    if not same_shape(input, target):
        return None
    return elementwise_loss("binary_cross_entropy_with_logits", input, target, weight, pos_weight, reduction)


def sum_to_size(t, sizes):
    return kernels.reduce.sum_to_size(t, sizes) if covers(t) else None


def scaled_dot_product_attention(query, key, value, attn_mask, is_causal, scale):
    tensors = query, key, value
    if not covers(*tensors) or torch.is_autocast_enabled(query.device.type) or not products_are_ieee(query):
        return None
    alike = all(t.dtype == query.dtype and t.dim() >= 2 and 0 not in t.shape for t in tensors)
    if not alike or query.dtype not in DTYPES or key.shape[-2] != value.shape[-2]:
        return None
    if type(is_causal) is not bool or not (scale is None or type(scale) in (int, float)):
        return None
    if attn_mask is not None:
        constant = is_ordinary(attn_mask) and not (attn_mask.requires_grad and torch.is_grad_enabled())
        if is_causal or not constant or attn_mask.device != query.device or 0 in attn_mask.shape:
            return None
        if attn_mask.dtype not in (torch.bool, query.dtype):
            return None
    if not fits_attention(*tensors, *(() if attn_mask is None else (attn_mask,))):
        return None
    return AttentionFunction.apply(*tensors, attn_mask, is_causal, scale if scale is None else float(scale))
