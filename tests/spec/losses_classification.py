"""Cross entropy and negative log likelihood, and their gradients, for x of shape (rows, classes).

A class index stands for a distribution over the classes, q: cross entropy is the same function of x and q for both
kinds of target, and so is its gradient (p total - q) s, with p = softmax(x) and total = the sum of q.
"""

import numpy as np

from .arithmetic import float32, fma, ieee
from .orders import sum_row
from .softmax import log_softmax, softmax

ZERO, ONE = float32(0), float32(1)


def softmax_parts(x):
    """(p, -log p)."""
    return softmax(x), -log_softmax(x)


def class_weights(target, weight, ignore_index):
    """(the row counts, its weight): 1 without ``weight``; where the row is ignored, +0."""
    counts = target != ignore_index
    rows = np.where(counts, target, 0)
    return counts, np.where(counts, ONE if weight is None else weight[rows], ZERO)


def divisor(counts, row_weights, weight):
    """What the mean divides by: the number of rows that count, or the sum of their weights."""
    return float32(counts.sum()) if weight is None else sum_row(row_weights)


@ieee
def reduce(values, reduction, count):
    """none: every row's value; sum: by the sum rule; mean: that sum divided."""
    if reduction == "none":
        return values
    return sum_row(values) / count if reduction == "mean" else sum_row(values)


@ieee
def scale(grad, reduction, count):
    """s: the output gradient of every row, for the mean divided first."""
    return grad / count if reduction == "mean" else grad


@ieee
def nll_loss(x, target, weight=None, ignore_index=-100, reduction="mean", grad=ONE):
    """(loss, dx): mul(w, -x) at the target; dx there -(w s), elsewhere +0."""
    counts, w = class_weights(target, weight, ignore_index)
    rows, classes = np.nonzero(counts)[0], target[counts]
    count = divisor(counts, w, weight)
    values, dx = np.zeros(len(x), np.float32), np.zeros_like(x)
    values[rows] = w[rows] * -x[rows, classes]
    s = np.broadcast_to(scale(grad, reduction, count), len(x))
    dx[rows, classes] = -(w[rows] * s[rows])
    return reduce(values, reduction, count), dx


@ieee
def cross_entropy(x, target, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean", grad=ONE):
    """(loss, dx) for class indices.

    A row's value is w nll; smoothed fma(1 - eps, w nll, (eps / C) smooth), smooth the sum of -log p, each times its
    class's weight. 1 - eps, eps / C and 1 - eps + eps / C are doubles rounded once. A row that is ignored gives +0.
    """
    counts, w = class_weights(target, weight, ignore_index)
    count = divisor(counts, w, weight)
    p, minus_log = softmax_parts(x)
    every, rows = np.arange(len(x)), np.where(counts, target, 0)
    values = w * minus_log[every, rows]
    q, total = np.zeros_like(x), w
    q[every, rows] = w
    if label_smoothing > 0:
        kept, spread = float32(1 - label_smoothing), float32(label_smoothing / x.shape[1])
        if weight is None:
            values = fma(kept, values, spread * sum_row(minus_log))
            q[:] = spread
            q[every, rows] = float32(1 - label_smoothing + label_smoothing / x.shape[1])
        else:
            values = fma(kept, values, spread * sum_row(weight * minus_log))
            q[:] = spread * weight
            q[every, rows] = fma(kept, w, spread * w)
            total = fma(kept, w, spread * sum_row(weight))
    s = np.broadcast_to(scale(grad, reduction, count), len(x))[:, None]
    dx = fma(p, total[:, None], -q) * s
    return reduce(np.where(counts, values, ZERO), reduction, count), np.where(counts[:, None], dx, ZERO)


@ieee
def cross_entropy_of_probabilities(x, target, weight=None, label_smoothing=0.0, reduction="mean", grad=ONE):
    """(loss, dx, dtarget) for class probabilities.

    q = target, smoothed fma(target, 1 - eps, eps / C), weighted w q. A row's value is the sum of q (-log p); dtarget is
    -log p, times the class's weight, times 1 - eps, times s.
    """
    p, minus_log = softmax_parts(x)
    q, slope = target, minus_log
    if label_smoothing > 0:
        q = fma(target, float32(1 - label_smoothing), float32(label_smoothing / x.shape[1]))
    if weight is not None:
        q, slope = weight * q, slope * weight
    if label_smoothing > 0:
        slope = slope * float32(1 - label_smoothing)
    count = float32(len(x))
    s = np.broadcast_to(scale(grad, reduction, count), len(x))[:, None]
    value = reduce(sum_row(q * minus_log), reduction, count)
    return value, fma(p, sum_row(q)[:, None], -q) * s, slope * s
