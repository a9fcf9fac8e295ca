"""linear_cross_entropy: cross_entropy of linear's logits and its gradients, a chunk of rows at a time.

No more rows' logits are ever stored, and every sum is taken in the order of the two ops one after the other.
"""

import torch

from . import numerics as n
from .cross_entropy import evaluate
from .linear import linear_backward, linear_inference
from .nll_loss import check_class_indices, class_operands
from .product import CHUNK, product
from .reduce import SEGMENT, sum_to_size
from .rows import computed_in

LOGITS_IN_CHUNK = 1 << 22  # about so many, yet rows enough for whole chunks of the weight gradient's sum
LANES = n.SUM_LANES.value
NONE, MEAN = 0, 1


class RowSum:
    """The sum of rows by the sum rule: row i goes to lane i mod 64 of its segment. The rows come in chunks."""

    def __init__(self):
        self.lanes, self.segments, self.rows = None, [], 0

    def add(self, chunk):
        """All chunks but the last are whole multiples of the lanes."""
        if self.lanes is None:
            self.lanes = chunk.new_zeros(LANES, chunk.shape[1])
        for rows in chunk.split(LANES):
            self.lanes[: rows.shape[0]] += rows
            self.rows += rows.shape[0]
            if self.rows % SEGMENT == 0:
                self.close()

    def close(self):
        self.segments.append(sum_to_size(self.lanes, self.lanes.shape[1:]))  # a row of its own for each lane
        self.lanes.zero_()

    def result(self):
        if self.rows % SEGMENT:
            self.close()
        return (
            self.segments[0]
            if len(self.segments) == 1
            else sum_to_size(torch.stack(self.segments), self.lanes.shape[1:])
        )


class Problem:
    """What all chunks have in common: matrices of inputs and weights, and one target for each row of the inputs."""

    def __init__(self, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing):
        self.features, self.logits = linear_weight.shape[-1], linear_weight.shape[:-1]
        self.dtype = computed_in(input.dtype)
        self.input, self.linear_weight = input.reshape(-1, self.features), linear_weight.reshape(-1, self.features)
        self.linear_bias = None if linear_bias is None else linear_bias.reshape(-1)
        self.target = target.unsqueeze(0) if input.dim() == 1 else target
        self.of_probabilities = target.is_floating_point()
        if self.of_probabilities:
            self.target = self.target.to(self.dtype)
        elif not target.is_cuda:
            check_class_indices("linear_cross_entropy", target, self.logits[0], ignore_index)
        self.weight = None if weight is None else weight.to(self.dtype)
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
        self.divisor = self.divided_by() if reduction == MEAN else None

    def divided_by(self):
        """What a mean divides by."""
        if self.of_probabilities:
            return torch.full((), self.target.numel() // self.logits[0], dtype=self.dtype, device=self.input.device)
        counts = self.target != self.ignore_index
        if self.weight is None:
            return counts.sum().to(self.dtype)
        of_rows = self.weight[torch.where(counts, self.target, 0).reshape(-1)]
        return sum_to_size(torch.where(counts.reshape(-1), of_rows, 0), ())

    def row_gradient(self):
        """The gradient of each row's loss where the loss's is 1."""
        one = torch.ones((), dtype=self.dtype, device=self.input.device)
        return one if self.divisor is None else one / self.divisor

    def weight_gradient(self, total, dz, x):
        """``total`` and, chunk after chunk of its sum, what these rows add to it."""
        if x.is_cuda and x.dtype != self.dtype:
            product_of_rows = torch.mm(dz.to(x.dtype).t(), x, out_dtype=self.dtype)
            return product_of_rows if total is None else total.add_(product_of_rows)
        for dz_rows, x_rows in zip(dz.split(CHUNK), x.to(self.dtype).split(CHUNK), strict=True):
            of_chunk = product(dz_rows.t()[None], x_rows[None])[0][0]
            total = of_chunk if total is None else total.add_(of_chunk)
        return total

    def run(self, grad, losses, mask):
        """The losses of all rows into ``losses``, where it is given, and the gradients that the mask chooses.

        ``grad`` is the gradient of each row's loss, or one number for all of them.
        """
        step = max(LOGITS_IN_CHUNK // self.linear_weight.shape[0] // CHUNK, 1) * CHUNK
        dx, dw, bias_sum = [], None, RowSum()
        for begin in range(0, self.input.shape[0], step):
            x, target = self.input[begin : begin + step], self.target[begin : begin + step]
            z = linear_inference(x, self.linear_weight, self.linear_bias, "none").to(self.dtype)
            o = class_operands("linear_cross_entropy", z.view(-1, *self.logits), target, self.weight, self.ignore_index)
            own_losses, dz, g = None, None, None
            if losses is not None:
                own_losses = losses[begin : begin + step]
            if any(mask):
                dz = torch.empty_like(z)
                g = grad[begin : begin + step] if grad.dim() else grad.expand(o.rows)
                g = g.contiguous()
            evaluate(o, NONE, self.ignore_index, self.label_smoothing, g, own_losses, dz, None, None)
            if mask[0]:
                dx.append(linear_backward(dz.to(x.dtype), x, self.linear_weight, None, "none", (True, False, False))[0])
            if mask[1]:
                dw = self.weight_gradient(dw, dz, x)
            if mask[2]:
                bias_sum.add(dz)
        if not self.input.shape[0]:
            return [t.new_zeros(t.shape) if m else None for t, m in zip(self.differentiable(), mask, strict=True)]
        found = [torch.cat(dx) if mask[0] else None, dw, bias_sum.result() if mask[2] else None]
        return [None if t is None else t.to(self.input.dtype) for t in found]

    def differentiable(self):
        return self.input, self.linear_weight, self.linear_bias


def shaped(gradients, *arguments):
    return tuple(None if g is None else g.view(t.shape) for g, t in zip(gradients, arguments, strict=True))


def linear_cross_entropy_forward(
    input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, dtype, mask
):
    """(loss, the gradients of the three differentiable arguments for a loss gradient of 1, None where masked)."""
    p = Problem(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing)
    losses = p.input.new_empty((p.input.shape[0], *p.logits[1:]), dtype=p.dtype)
    gradients = p.run(p.row_gradient(), losses, mask)
    loss = losses.view((*input.shape[:-1], *p.logits[1:])) if reduction == NONE else sum_to_size(losses.view(-1), ())
    if p.divisor is not None:
        loss = loss / p.divisor
    return loss.to(input.dtype if dtype is None else dtype), *shaped(gradients, input, linear_weight, linear_bias)


def linear_cross_entropy_inference(
    input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, dtype
):
    options = linear_bias, weight, reduction, ignore_index, label_smoothing, dtype
    return linear_cross_entropy_forward(input, linear_weight, target, *options, (False,) * 3)[0]


def linear_cross_entropy_backward(
    grad, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, mask
):
    """The three gradients, None where the mask says so. That of one number multiplies the gradients for 1."""
    p = Problem(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing)
    g = grad.to(p.dtype)
    if reduction == NONE:
        gradients = p.run(g.reshape(p.input.shape[0], *p.logits[1:]), None, mask)
    else:
        gradients = [None if t is None else t.mul_(g) for t in p.run(p.row_gradient(), None, mask)]
    return shaped(gradients, input, linear_weight, linear_bias)
