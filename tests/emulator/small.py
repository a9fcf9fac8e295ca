"""Every kernel over small shapes: what the interpreter has time for."""

import torch

from . import checks, ops
from .arguments import ACTIVATIONS, FUNCTIONS, LOSSES

LONG_ROW, SHARED_SEGMENTS = 9300, 2.25  # in groups, and beyond the shared memory of a block of so many segments


def products(machine):
    for m, n, k in [(1, 1, 1), (5, 7, 257), (33, 3, 20)]:
        checks.check_linear_forward(machine, m, n, k, special=True)
    a = checks.random(2, 20, 6, dtype=machine.dtype)[..., ::2]
    checks.check_matmul(machine, a, checks.random(2, 5, 3, dtype=machine.dtype).mT)
    for m, n, k in [(36, 30, 20), (64, 64, 20), (60, 63, 17), (128, 128, 270), (120, 127, 17)]:  # of every tile
        for a, b in checks.transpositions(m, n, k, machine.dtype):
            checks.check_matmul(machine, a, b)
    for m, n in [(64, 64), (128, 128), (120, 127)]:
        checks.check_linear_forward(machine, m, n, 17, "silu")


def linear_forward(machine):
    for activation in ACTIVATIONS:
        checks.check_linear_forward(machine, 9, 20, 3, activation, special=True)


def linear_gradients(machine):
    """Of one segment of rows and of two, which is another kernel where results are narrower than sums."""
    for activation in ACTIVATIONS:
        checks.check_linear_backward(machine, 9, 24, 3, activation)
        checks.check_linear_backward(machine, 9, 13, 3, activation)
        if machine.dtype.itemsize == 2:
            checks.check_linear_backward(machine, 4097, 2, 1, activation)


def attention(machine):
    for mask, is_causal in [(None, False), (None, True), ("added", False), ("allowed", False)]:
        checks.check_attention(machine, checks.attention_operands(machine, (2,), 5, 9, 4, 3, mask), is_causal)
    operands = checks.attention_operands(machine, (1,), 130, 140, 2, 1)
    checks.check_attention(machine, operands, is_causal=True)
    if machine.dtype == torch.float32:
        one_launch_attention(machine)


def one_launch_attention(machine):
    """With blocks of every number of queries: here of one multiprocessor, which blocks of any size fill."""
    machine.runner.set_multiprocessors(1)
    for keys, width, value_width in [(70, 17, 68), (801, 3, 2), (1601, 3, 2)]:
        operands = checks.attention_operands(machine, (1,), 34, keys, width, value_width, "added")
        y = ops.scaled_dot_product_attention(machine, *operands)
        expected = checks.library.scaled_dot_product_attention_forward(*operands, False, None)
        checks.check_all(machine, [y], [expected], f"attention of {keys} keys")
    machine.runner.set_multiprocessors(132)


def functions(machine):
    for name in FUNCTIONS:
        checks.check_function(machine, name, 20 * checks.random(200, special=True, dtype=machine.dtype))


def elementwise(machine):
    """Groups of elements with and without an end, activations, dropout."""
    for kind in ACTIVATIONS:
        checks.check_activation(machine, kind, 1027, special=True)
        checks.check_activation(machine, kind, 3)
    checks.check_dropout(machine, 1027, 0.3, key=-5, special=True)


def losses(machine):
    checks.check_elementwise_loss(machine, "mse_loss", (5000,), special=True)
    checks.check_elementwise_loss(machine, "mse_loss", (5000,), weighted=True)
    for loss in LOSSES:
        checks.check_elementwise_loss(machine, loss, (70,), "mean")
        checks.check_elementwise_loss(machine, loss, (70,), "none", special=loss != "binary_cross_entropy")
        checks.check_elementwise_loss(machine, loss, (70,), "sum", pos_weighted=True)


def rows(machine):
    for columns, *others in [(11,), (12,), (1100,), (1101,), (4201,), (9, 3), (300, 2), (4100, 2)]:
        checks.check_softmax(machine, (2, columns, *others), dim=1)
        checks.check_softmax(machine, (2, columns, *others), dim=1, logarithm=True)
        for probabilities in (False, True):
            checks.check_cross_entropy(machine, (4, columns, *others), probabilities=probabilities)
            shape = (2, columns, *others)
            checks.check_cross_entropy(machine, shape, "none", smoothing=0.1, probabilities=probabilities)
    machine.runner.set_shared_bytes(int(SHARED_SEGMENTS * 4096 * max(4, machine.dtype.itemsize)))
    for most_cluster, columns in [(8, LONG_ROW), (8, LONG_ROW + 1), (1, LONG_ROW)]:
        machine.runner.set_most_cluster(most_cluster)
        long_rows(machine, columns)
    machine.runner.set_most_cluster(8)
    machine.runner.set_shared_bytes(227 << 10)
    checks.check_cross_entropy(machine, (4, 70), "sum", weighted=True, smoothing=0.1, special=True)
    checks.check_cross_entropy(machine, (4, 70), "sum", weighted=True, smoothing=0.1, probabilities=True)
    checks.check_cross_entropy(machine, (2, 7, 3), weighted=True)
    checks.check_cross_entropy(machine, (4100, 1))
    checks.check_nll_loss(machine, (70, 9), weighted=True)
    checks.check_nll_loss(machine, (2, 7, 3), "none")


def long_rows(machine, columns):
    checks.check_softmax(machine, (2, columns))
    for probabilities in (False, True):
        checks.check_cross_entropy(machine, (2, columns), "none", smoothing=0.1, probabilities=probabilities)


def sums(machine):
    checks.check_batch_offsets(machine, torch.arange(96).view(2, 3, 4, 2, 2).mT.transpose(0, 2))
    grad = checks.random(4100, 3, dtype=machine.dtype)
    checks.check_linear_backward(machine, 4100, 3, 1, grad=grad)
    for x in (checks.random(2, 70, 40, special=True), checks.random(1, 4100, 3)):
        checks.check_sum_slices(machine, x.to(machine.dtype))
        checks.check_sum_slices(machine, x.to(machine.dtype).mT.contiguous().mT)
    x, y = (checks.random(4100, special=special, dtype=machine.dtype) for special in (True, False))
    checks.check_dot_product(machine, x, y)
    checks.check_dot_product(machine, x[1::3], y[:1].expand(1367))


def updates(machine):
    checks.check_sgd(machine, [1, 1030], special=True)
    checks.check_adam(machine, [1, 1030, 7], special=True)
    checks.check_adam(machine, [33], decoupled=True, amsgrad=True)
    checks.check_clip_gradients(machine, [1, 4100, 0, 7], 0.5)
    checks.check_clip_gradients(machine, [1] * 4100, 0.5)
    if machine.dtype.itemsize > 2:
        checks.check_sgd(machine, [1, 1030], special=True, recorded=True)
        checks.check_adam(machine, [1, 1030, 7], special=True, amsgrad=True, recorded=True)


def graphs(machine):
    checks.check_graph(machine, 1027, range(1, 301))
    checks.check_graph(machine, 0)
