"""Each launcher on a machine against the same function of the CPU library, bit for bit."""

import torch
from accuracy import assert_same_bits

from pytorch_ext import optim
from pytorch_ext.functional import linear, matmul

from . import ops
from .arguments import REDUCTIONS, SAVES_INPUT

library = torch.ops.pytorch_ext
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, -1e-42, -0.0, 3e38, -3e38])


def random(*shape, special=False):
    """Normal numbers; with `special`, one in some seventeen is NaN, infinite, subnormal, -0 or huge."""
    x = torch.randn(shape)
    if special:
        x.view(-1)[::17] = SPECIAL.repeat(x.numel())[: x.view(-1)[::17].numel()]
    return x


def check_all(ours, theirs, what):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if b is not None:
            assert_same_bits(a.reshape(b.shape), b, f"result {i} of {what}")


def check_linear_forward(machine, m, n, k, activation="none", bias=True, special=False):
    x, w, b = random(m, k, special=special), random(n, k), random(n) if bias else None
    y, z = ops.product(machine, x, w.T, b, activation, preactivation=True)
    expected = [linear(x, w, b, activation=activation), linear(x, w, b)]
    check_all([y, z], expected, f"linear {(m, n, k, activation)}")


def check_matmul(machine, a, b):
    check_all(ops.product(machine, a, b)[:1], [matmul(a, b)], f"matmul {(*a.shape, *b.shape)}")


def check_linear_backward(machine, m, n, k, activation="none", grad=None):
    x, w, b = random(m, k), random(n, k), random(n)
    grad = random(m, n) if grad is None else grad
    z = linear(x, w, b)
    saved = z if activation in SAVES_INPUT else linear(x, w, b, activation=activation)
    saved = None if activation == "none" else saved
    expected = library.linear_backward(grad, x, w, saved, activation, [True, True, True])
    check_all(ops.linear_backward(machine, grad, x, w, saved, activation), expected, f"linear {(m, n, k, activation)}")


def check_elementwise_loss(machine, loss, shape, reduction="mean", weighted=False, pos_weighted=False, special=False):
    x, target = random(*shape, special=special), random(*shape)
    weight = random(*shape).abs() if weighted else None
    pos_weight = random(*shape).abs() if pos_weighted else None
    mean_weight = weight if loss == "mse_loss" else None
    number = REDUCTIONS.index(reduction)
    expected = library.elementwise_loss_forward(x, target, weight, pos_weight, loss, number, [True, True])
    args = (machine, loss, reduction, x, target, weight, pos_weight, mean_weight)
    check_all(ops.elementwise_loss(*args), expected, f"{loss} {shape} {reduction}")
    grad = random(*expected[0].shape)
    expected = library.elementwise_loss_backward(grad, x, target, weight, pos_weight, loss, number, [True, True])
    check_all(ops.elementwise_loss(*args, grad=grad)[1:], expected, f"the gradient of {loss} {shape} {reduction}")


def check_softmax(machine, shape, dim=-1, logarithm=False, special=False):
    x, grad = 4 * random(*shape, special=special), random(*shape)
    y = library.softmax_forward(x, dim, logarithm)
    what = f"softmax {shape}, dim {dim}, logarithm {logarithm}"
    check_all([ops.softmax(machine, x, dim, logarithm)], [y], what)
    expected = library.softmax_backward(grad, y, dim, logarithm)
    check_all([ops.softmax_gradient(machine, grad, y, dim, logarithm)], [expected], f"the gradient of {what}")


def check_cross_entropy(machine, shape, reduction="mean", weighted=False, smoothing=0.0, special=False):
    x, classes = 4 * random(*shape, special=special), shape[1]
    target = torch.randint(classes, (shape[0], *shape[2:]))
    target.view(-1)[1::3] = -100
    weight = random(classes).abs() if weighted else None
    number, what = REDUCTIONS.index(reduction), f"cross_entropy {shape} {reduction}"
    expected = library.cross_entropy_forward(x, target, weight, number, -100, smoothing, True)
    args = (machine, x, target, weight, reduction, -100, smoothing)
    check_all(ops.cross_entropy(*args), expected, what)
    grad = random(*expected[0].shape)
    expected = library.cross_entropy_backward(grad, x, target, weight, number, -100, smoothing, [True, False])
    check_all(ops.cross_entropy(*args, grad=grad)[1:], expected[:1], f"the gradient of {what}")


def _power(base, exponent):
    """By squaring, as the optimisers' launcher has it."""
    result = 1.0
    while exponent > 0:
        if exponent % 2:
            result *= base
        exponent, base = exponent // 2, base * base
    return result


def _parameters(sizes, special=False):
    params = [random(size).requires_grad_() for size in sizes]
    for p in params:
        p.grad = random(*p.shape, special=special)
    return params, [p.grad.clone() for p in params]


def check_sgd(machine, sizes, momentum=0.9, weight_decay=0.01, nesterov=True, special=False):
    params, grads = _parameters(sizes, special)
    optimizer = optim.SGD(params, 0.1, momentum, 0.0, weight_decay, nesterov)
    rule = {"negative_lr": -0.1, "momentum": momentum, "one_minus_dampening": 1, "weight_decay": weight_decay}
    rule["nesterov"] = nesterov
    ours = [p.detach().clone() for p in params]
    buffers = [torch.empty(size) for size in sizes] if momentum else None
    for step in range(2):
        ours, buffers = ops.sgd_step(machine, rule, ours, grads, buffers, first=step == 0)
        optimizer.step()
        check_all(ours, [p.detach() for p in params], f"SGD, step {step}")


def check_adam(machine, sizes, weight_decay=0.01, decoupled=False, amsgrad=False, special=False):
    params, grads = _parameters(sizes, special)
    optimizer = (optim.AdamW if decoupled else optim.Adam)(params, 1e-3, weight_decay=weight_decay, amsgrad=amsgrad)
    rule = {"beta1": 0.9, "one_minus_beta1": 1 - 0.9, "beta2": 0.999, "one_minus_beta2": 1 - 0.999, "eps": 1e-8}
    rule |= {"weight_decay": weight_decay, "negative_lr_weight_decay": -(1e-3 * weight_decay)}
    rule |= {"decoupled": decoupled, "amsgrad": amsgrad}
    ours = [p.detach().clone() for p in params]
    state = [[torch.zeros(size) for size in sizes] for _ in range(2 + amsgrad)]
    for step in (1, 2, 3):
        step_size, scale = 1e-3 / (1 - _power(0.9, step)), 1 / (1 - _power(0.999, step)) ** 0.5
        ours, *state = ops.adam_step(machine, rule, -step_size, scale, ours, grads, *state)
        optimizer.step()
        check_all(ours, [p.detach() for p in params], f"Adam, step {step}")
