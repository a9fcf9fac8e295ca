"""nll_loss, and the operands it shares with cross_entropy: class indices, class weights, the mean's divisor."""

from typing import NamedTuple

import torch
import triton.language as tl

from . import numerics as n
from . import rows as r
from .launch import block_size, blocks, device_function, kernel, launch
from .reduce import sum_rows

# ---- targets --------------------------------------------------------------------------------------------------------


@device_function
def load_targets(target_ptr, number, rows, classes, ignore_index):
    """(target, it counts, it counts and is in range). A debug build asserts; without it such a row gives NaN."""
    target = tl.load(target_ptr + number, mask=number < rows, other=ignore_index)
    counts = target != ignore_index
    in_range = (target >= 0) & (target < classes)
    tl.device_assert(in_range | (target == ignore_index), "class index out of range")
    return target, counts, counts & in_range


@device_function
def load_class_weights(weight_ptr, target, readable, dtype: tl.constexpr):
    """1 without weights; where there is no class to be read, NaN."""
    if weight_ptr is None:
        return tl.where(readable, tl.full(target.shape, 1.0, dtype), float("nan"))
    else:
        return n.widen(tl.load(weight_ptr + target, mask=readable, other=float("nan")))


@kernel
def target_weights_kernel(target_ptr, weight_ptr, w_ptr, rows, classes, ignore_index, BLOCK: tl.constexpr):
    """w = the weight of every row's class; of a row that is ignored, +0."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target, counts, readable = load_targets(target_ptr, row, rows, classes, ignore_index)
    w = load_class_weights(weight_ptr, target, readable, w_ptr.dtype.element_ty)
    tl.store(w_ptr + row, tl.where(counts, w, 0.0), mask=row < rows)


# ---- kernels --------------------------------------------------------------------------------------------------------


# loss = -w x[target]
@kernel
def nll_loss_forward_kernel(
    x_ptr, target_ptr, weight_ptr, loss_ptr, rows, classes, inner, x_outer, ignore_index, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target, counts, readable = load_targets(target_ptr, row, rows, classes, ignore_index)
    at = row // inner * x_outer + target * inner + row % inner
    x = n.widen(tl.load(x_ptr + at, mask=readable, other=float("nan")))
    value = load_class_weights(weight_ptr, target, readable, x.dtype) * n.negative(x)
    tl.store(loss_ptr + row, n.narrow(tl.where(counts, value, 0.0), loss_ptr.dtype.element_ty), mask=row < rows)


# dx = -w s at the target, elsewhere +0
@kernel
def nll_loss_backward_kernel(
    g_ptr, target_ptr, weight_ptr, divisor_ptr, dx_ptr, rows, classes, inner, ignore_index,
    EACH: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx holds +0 before."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target, counts, readable = load_targets(target_ptr, row, rows, classes, ignore_index)
    s = n.widen(tl.load(g_ptr + row, mask=row < rows)) if EACH else n.widen(tl.load(g_ptr + row * 0))
    if MEAN:
        s = r.over_divisor(s, divisor_ptr, rows)
    dx = n.negative(load_class_weights(weight_ptr, target, readable, s.dtype) * s)
    at = r.row_start(row, classes, inner) + target * inner
    tl.store(dx_ptr + at, n.narrow(dx, dx_ptr.dtype.element_ty), mask=readable)


# ---- launchers ------------------------------------------------------------------------------------------------------


class ClassOperands(NamedTuple):
    """The operands as the kernels read them: logits (outer, classes, inner), and a target for each of the `rows`."""

    x: torch.Tensor
    target: torch.Tensor  # one class index for each row; else probabilities, in the order of x
    weight: torch.Tensor  # or None
    rows: int
    classes: int
    inner: int
    x_outer: int
    of_probabilities: bool
    classes_last: bool  # of more than two dimensions, yet with the classes contiguous

    def divisor(self, reduction, ignore_index):
        """What the mean divides by, on the device; None where that is the number of rows, or nothing is divided."""
        if reduction != 1 or self.of_probabilities:
            return None
        dtype = r.computed_in(self.x.dtype)
        if self.weight is None:
            return (self.target != ignore_index).sum().to(dtype)  # integers: exact in any order
        w = self.x.new_empty(self.rows, dtype=dtype)
        block = block_size(self.rows, 256)
        arguments = self.target, self.weight, w, self.rows, self.classes, ignore_index
        launch(target_weights_kernel, (blocks(self.rows, block),), *arguments, BLOCK=block)
        return sum_rows(w[None])

    def like_x(self, t):
        """An uninitialised tensor of t's shape, in the order in which the kernels write it."""
        return torch.empty_like(t) if self.classes_last else t.new_empty(t.shape)


def check_class_indices(op, target, classes, ignore_index):
    """On a device the kernels' assertion is all there is: a message would have to wait for it."""
    outside = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if len(outside):
        expected = f"class indices in [0, {classes}) or ignore_index {ignore_index}"
        raise IndexError(f"{op}: expected {expected}, got {outside[0].item()}")


def class_operands(op, input, target, weight, ignore_index):
    outer, classes = (input.shape[0], input.shape[1]) if input.dim() > 1 else (1, input.shape[0])
    inner = input.shape[2:].numel()
    moved = input.movedim(1, -1) if input.dim() > 2 else input
    classes_last = input.dim() > 2 and not input.is_contiguous() and moved.is_contiguous()
    as_it_is = classes_last or (input.dim() == 2 and input.stride(1) == 1)
    x = input if as_it_is else input.contiguous()
    x_outer = x.stride(0) if x.dim() == 2 else classes * inner
    of_probabilities = target.is_floating_point()
    rows = outer * inner
    if of_probabilities:
        target = (target.movedim(1, -1) if classes_last else target).contiguous()
    else:
        target = target.reshape(-1).long()
        if not target.is_cuda:
            check_class_indices(op, target, classes, ignore_index)
    if classes_last:
        inner, x_outer = 1, classes
    weight = None if weight is None else weight.contiguous()
    return ClassOperands(x, target, weight, rows, classes, inner, x_outer, of_probabilities, classes_last)


def loss_sizes(input, reduction):
    """The loss of every row where reduction is none, else one number."""
    return (input.shape[0], *input.shape[2:]) if reduction == 0 and input.dim() > 1 else ()


def reduced(losses, reduction, sizes, divisor, count, dtype):
    """The loss out of the rows' losses, which are already it where reduction is none."""
    if reduction == 0:
        return losses.view(sizes)
    if reduction == 1 and divisor is None:
        divisor = count
    return sum_rows(losses[None], dtype, divisor).view(())


def nll_loss_forward(input, target, weight, reduction, ignore_index):
    o = class_operands("nll_loss", input, target, weight, ignore_index)
    losses = input.new_empty(o.rows, dtype=input.dtype if reduction == 0 else r.computed_in(input.dtype))
    block = block_size(o.rows, 256)
    arguments = o.x, o.target, o.weight, losses, o.rows, o.classes, o.inner, o.x_outer, ignore_index
    launch(nll_loss_forward_kernel, (blocks(o.rows, block),), *arguments, BLOCK=block)
    return reduced(
        losses, reduction, loss_sizes(input, reduction), o.divisor(reduction, ignore_index), o.rows, input.dtype
    )


def nll_loss_backward(grad, input, target, weight, reduction, ignore_index):
    o = class_operands("nll_loss_backward", input, target, weight, ignore_index)
    dx, block = o.like_x(input).zero_(), block_size(o.rows, 256)
    divisor = o.divisor(reduction, ignore_index)
    launch(
        nll_loss_backward_kernel, (blocks(o.rows, block),),
        grad.contiguous(), o.target, o.weight, divisor, dx, o.rows, o.classes, o.inner, ignore_index,
        EACH=reduction == 0, MEAN=reduction == 1, BLOCK=block,
    )  # fmt: skip
    return dx
