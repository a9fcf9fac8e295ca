"""Each launcher on a machine against the same function of the CPU library, bit for bit."""

import torch
from accuracy import assert_same_bits
from spec.optimizers import power

from pytorch_ext import native, optim
from pytorch_ext.functional import linear, matmul

from . import ops
from .arguments import REDUCTIONS, SAVES_INPUT

library = torch.ops.pytorch_ext
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, -1e-42, -0.0, 3e38, -3e38])


def random(*shape, special=False, dtype=torch.float32):
    """Normal numbers; with `special`, one in some seventeen is NaN, infinite, subnormal, -0 or huge."""
    x = torch.randn(shape)
    if special:
        x.view(-1)[::17] = SPECIAL.repeat(x.numel())[: x.view(-1)[::17].numel()]
    return x.to(dtype)


def transpositions(m, n, k, dtype=torch.float32, special=False):
    """Factors (m, k) and (k, n), each with either dimension contiguous."""
    for a in (random(m, k, special=special, dtype=dtype), random(k, m, special=special, dtype=dtype).T):
        for b in (random(k, n, dtype=dtype), random(n, k, dtype=dtype).T):
            yield a, b


def check_all(machine, ours, theirs, what):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if b is None:
            continue
        a = a.reshape(b.shape)
        if machine.tolerance:
            torch.testing.assert_close(a, b, rtol=machine.tolerance, atol=machine.tolerance, equal_nan=True)
        else:
            assert_same_bits(a, b, f"result {i} of {what}")


def check_linear_forward(machine, m, n, k, activation="none", bias=True, special=False):
    x, w = random(m, k, special=special, dtype=machine.dtype), random(n, k, dtype=machine.dtype)
    b = random(n, dtype=machine.dtype) if bias else None
    y, z = ops.product(machine, x, w.T, b, activation, preactivation=True)
    expected = [linear(x, w, b, activation=activation), linear(x, w, b)]
    check_all(machine, [y, z], expected, f"linear {(m, n, k, activation)}")


def check_matmul(machine, a, b):
    check_all(machine, ops.product(machine, a, b)[:1], [matmul(a, b)], f"matmul {(*a.shape, *b.shape)}")


def check_linear_backward(machine, m, n, k, activation="none", grad=None):
    x, w, b = (random(*shape, dtype=machine.dtype) for shape in ((m, k), (n, k), (n,)))
    grad = random(m, n, dtype=machine.dtype) if grad is None else grad
    z = linear(x, w, b)
    saved = z if activation in SAVES_INPUT else linear(x, w, b, activation=activation)
    saved = None if activation == "none" else saved
    what = f"linear {(m, n, k, activation)}"
    if machine.dtype.itemsize == 2:  # no products: with the identity for a weight the library's dx is dz, without -0
        x, w = torch.zeros(m, n, dtype=machine.dtype), torch.eye(n, dtype=machine.dtype)
        dz, _, dbias = library.linear_backward(grad, x, w, saved, activation, [True, True, True])
        ours = ops.linear_gradient(machine, grad, saved, activation)
        return check_all(machine, [ours[0] + 0, ours[1]], [dz, dbias], what)
    expected = library.linear_backward(grad, x, w, saved, activation, [True, True, True])
    check_all(machine, ops.linear_backward(machine, grad, x, w, saved, activation), expected, what)


def attention_operands(machine, batch, queries, keys, width, value_width, mask=None, special=False):
    """(query, key, value, mask): a mask is "added", "allowed" (of which the third row sees nothing) or None."""
    shapes = (*batch, queries, width), (*batch, keys, width), (*batch, keys, value_width)
    q, k, v = (random(*shape, special=special, dtype=machine.dtype) for shape in shapes)
    masks = {"added": random(queries, keys, dtype=machine.dtype), "allowed": torch.rand(*batch, queries, keys) > 0.4}
    if mask == "allowed":
        masks[mask][..., 2:3, :] = False
    return q, k, v, masks.get(mask)


def check_attention(machine, operands, is_causal=False, scale=None, wanted=(True, True, True)):
    query, key, value, _ = operands
    what = f"attention {(*query.shape, *key.shape[-2:], value.shape[-1])}, causal {is_causal}"
    y = library.scaled_dot_product_attention_forward(*operands, is_causal, scale)
    check_all(machine, [ops.scaled_dot_product_attention(machine, *operands, is_causal, scale)], [y], what)
    grad = random(*y.shape[:-2], y.shape[-1], y.shape[-2], dtype=machine.dtype).mT
    expected = library.scaled_dot_product_attention_backward(grad, *operands, is_causal, scale, list(wanted))
    ours = ops.scaled_dot_product_attention_gradient(machine, grad, *operands, is_causal, scale, wanted)
    check_all(machine, ours, expected, f"the gradients of {what}")


def check_function(machine, name, x):
    x = -x.abs() if name == "exp_nonpositive" else x
    check_all(machine, [ops.apply_function(machine, name, x)], [native.library.apply_function(name, x)], name)


def check_activation(machine, kind, count, special=False):
    x, grad = (random(count, special=special, dtype=machine.dtype) for _ in range(2))
    y = library.activation_forward(x, kind)
    check_all(machine, [ops.activation(machine, kind, x)], [y], f"{kind} of {count}")
    saved = x if kind in SAVES_INPUT else y
    expected = library.activation_backward(grad, saved, kind)
    ours = ops.activation_gradient(machine, kind, grad, saved)
    check_all(machine, [ours], [expected], f"the gradient of {kind} of {count}")


def check_dropout(machine, count, p, key, special=False):
    x = random(count, special=special, dtype=machine.dtype)
    expected = library.dropout_forward(x, p, torch.tensor(key))
    check_all(machine, [ops.dropout(machine, x, p, key)], [expected], f"dropout of {count}, p {p}")


def check_sum_slices(machine, x):
    """x: three dimensions, of which the last or the middle one has stride 1."""
    expected = native.library.sum_to_size(x, (x.shape[0], 1, x.shape[2]))
    check_all(machine, [ops.sum_slices(machine, x)], [expected], f"the sum of {x.shape}, strides {x.stride()}")


def check_dot_product(machine, x, y):
    check_all(machine, [ops.dot_product(machine, x, y)], [matmul(x, y)], f"the dot product of {len(x)}")


def check_batch_offsets(machine, t):
    """t: numbers that count the elements of its storage."""
    offsets = ops.batch_offsets(machine, t).tensor
    assert torch.equal(t.storage_offset() + offsets, t[..., 0, 0].flatten().long())


def check_into(machine, backward, left, grad, expected):
    """A backward pass over what its forward pass has left: where the gradient is 1 it touches nothing."""
    ones = torch.ones_like(grad)
    for g, wanted in ((ones, left), (grad, expected), (ones - torch.finfo(grad.dtype).eps / 2, None)):
        ours = backward(g)
        if wanted is None:
            assert all((a != b).all() for a, b in zip(ours, left, strict=True))
        else:
            check_all(machine, ours, wanted, f"gradients in advance, grad {g.item()}")


def check_elementwise_loss(machine, loss, shape, reduction="mean", weighted=False, pos_weighted=False, special=False):
    x, target = random(*shape, special=special, dtype=machine.dtype), random(*shape, dtype=machine.dtype)
    if loss == "binary_cross_entropy":
        x, target = (torch.clamp(t / 4 + 0.5, 0, 1) for t in (x, target))
    weight = random(*shape, dtype=machine.dtype).abs() if weighted else None
    pos_weight = random(*shape, dtype=machine.dtype).abs() if pos_weighted else None
    mean_weight = weight if loss == "mse_loss" else None
    number = REDUCTIONS.index(reduction)
    expected = library.elementwise_loss_forward(x, target, weight, pos_weight, loss, number, [True, True])
    args = (machine, loss, reduction, x, target, weight, pos_weight, mean_weight)
    check_all(machine, ops.elementwise_loss(*args), expected, f"{loss} {shape} {reduction}")
    grad = random(*expected[0].shape, dtype=machine.dtype)
    expected = library.elementwise_loss_backward(grad, x, target, weight, pos_weight, loss, number, [True, True])
    ours = ops.elementwise_loss(*args, grad=grad, value=False)[1:]
    check_all(machine, ours, expected, f"the gradient of {loss} {shape} {reduction}")
    if reduction != "none":
        left = [torch.full_like(x, 7), torch.full_like(x, 8)]
        check_into(machine, lambda grad: ops.elementwise_loss(*args, grad, False, left)[1:], left, grad, expected)


def check_softmax(machine, shape, dim=-1, logarithm=False, special=False):
    x, grad = 4 * random(*shape, special=special, dtype=machine.dtype), random(*shape, dtype=machine.dtype)
    y = library.softmax_forward(x, dim, logarithm)
    what = f"softmax {shape}, dim {dim}, logarithm {logarithm}"
    check_all(machine, [ops.softmax(machine, x, dim, logarithm)], [y], what)
    expected = library.softmax_backward(grad, y, dim, logarithm)
    check_all(machine, [ops.softmax_gradient(machine, grad, y, dim, logarithm)], [expected], f"the gradient of {what}")


def class_operands(machine, shape, weighted, special):
    """(logits, indices of which every third is ignored, class weights or None)"""
    x, classes = 4 * random(*shape, special=special, dtype=machine.dtype), shape[1]
    target = torch.randint(classes, (shape[0], *shape[2:]))
    target.view(-1)[1::3] = -100
    return x, target, random(classes, dtype=machine.dtype).abs() if weighted else None


def check_cross_entropy(
    machine, shape, reduction="mean", weighted=False, smoothing=0.0, special=False, probabilities=False
):
    x, target, weight = class_operands(machine, shape, weighted, special)
    if probabilities:
        target = torch.softmax(random(*shape), 1).to(machine.dtype)
    number, what = REDUCTIONS.index(reduction), f"cross_entropy {shape} {reduction}"
    loss, dx = library.cross_entropy_forward(x, target, weight, number, -100, smoothing, True)
    args = (machine, x, target, weight, reduction, -100, smoothing)
    check_all(machine, ops.cross_entropy(*args)[:2], [loss, dx], what)
    grad = random(*loss.shape, dtype=machine.dtype)
    expected = library.cross_entropy_backward(grad, x, target, weight, number, -100, smoothing, [True, probabilities])
    ours = ops.cross_entropy(*args, grad=grad, value=False)[1:]
    check_all(machine, ours, expected, f"the gradients of {what}")
    if reduction != "none":
        left = torch.full_like(x, 7)
        check_into(machine, lambda grad: ops.cross_entropy(*args, grad, False, left)[1:2], [left], grad, expected[:1])


def check_nll_loss(machine, shape, reduction="mean", weighted=False, special=False):
    x, target, weight = class_operands(machine, shape, weighted, special)
    number, what = REDUCTIONS.index(reduction), f"nll_loss {shape} {reduction}"
    expected = library.nll_loss_forward(x, target, weight, number, -100)
    args = (machine, x, target, weight, reduction)
    check_all(machine, ops.nll_loss(*args)[:1], [expected], what)
    grad = random(*expected.shape, dtype=machine.dtype)
    expected = library.nll_loss_backward(grad, x, target, weight, number, -100)
    check_all(machine, ops.nll_loss(*args, grad=grad, value=False)[1:], [expected], f"the gradient of {what}")


def adam_factors(lr, beta1, beta2, step):
    """(negative step size, scale) as csrc/numerics/coefficients.h has them."""
    return -(lr / (1 - power(beta1, step))), 1 / (1 - power(beta2, step)) ** 0.5


def adam_rule(lr, beta1, beta2, eps, weight_decay, **flags):
    return {
        "beta1": beta1,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "negative_lr_weight_decay": -(lr * weight_decay),
        **flags,
    }


def sgd_rule(lr, momentum, dampening, weight_decay, **flags):
    rule = {"negative_lr": -lr, "momentum": momentum, "one_minus_dampening": 1 - dampening}
    return {**rule, "weight_decay": weight_decay, **flags}


def _parameters(machine, sizes, special=False):
    params = [random(size, dtype=machine.dtype).requires_grad_() for size in sizes]
    for p in params:
        p.grad = random(*p.shape, special=special, dtype=machine.dtype)
    return params, [p.grad.clone() for p in params]


def check_graph(machine, count, numbers=()):
    """Inputs that may begin between groups of elements, and as many numbers."""
    inputs = [random(count), torch.arange(5)]
    result = random(1, dtype=torch.float64 if machine.dtype == torch.float64 else torch.float32)
    copies, written, made = ops.graph(machine, inputs, numbers, result)
    assert all(map(torch.equal, copies, inputs)) and torch.equal(made, result)
    assert written.tolist() == [*numbers, *[-1] * (len(written) - len(numbers))]


def check_sgd(machine, sizes, momentum=0.9, weight_decay=0.01, nesterov=True, special=False, recorded=False):
    params, grads = _parameters(machine, sizes, special)
    optimizer = optim.SGD(params, 0.1, momentum, 0.0, weight_decay, nesterov)
    rule = sgd_rule(0.1, momentum, 0, weight_decay, nesterov=nesterov)
    ours = [p.detach().clone() for p in params]
    buffers = [torch.empty(size, dtype=machine.dtype) for size in sizes] if momentum else None
    for step in range(2):
        ours, buffers = ops.sgd_step(machine, rule, ours, grads, buffers, first=step == 0, recorded=recorded)
        optimizer.step()
        check_all(machine, ours, [p.detach() for p in params], f"SGD, step {step}")


def check_adam(machine, sizes, weight_decay=0.01, decoupled=False, amsgrad=False, special=False, recorded=False):
    params, grads = _parameters(machine, sizes, special)
    optimizer = (optim.AdamW if decoupled else optim.Adam)(params, 1e-3, weight_decay=weight_decay, amsgrad=amsgrad)
    rule = adam_rule(1e-3, 0.9, 0.999, 1e-8, weight_decay, decoupled=decoupled, amsgrad=amsgrad)
    ours = [p.detach().clone() for p in params]
    state = [[torch.zeros(size, dtype=machine.dtype) for size in sizes] for _ in range(2 + amsgrad)]
    for step in (1, 2, 3):
        factors = adam_factors(1e-3, 0.9, 0.999, step)
        ours, *state = ops.adam_step(machine, rule, *factors, ours, grads, *state, recorded=recorded)
        optimizer.step()
        check_all(machine, ours, [p.detach() for p in params], f"Adam, step {step}")


def check_clip_gradients(machine, sizes, max_norm, special=False):
    params, grads = _parameters(machine, sizes, special)
    norm, clipped = ops.clip_gradients(machine, grads, max_norm)
    expected = optim.clip_grad_norm_(params, max_norm)
    what = f"clipping to {max_norm}"
    check_all(machine, [norm.to(machine.dtype), *clipped], [expected, *(p.grad for p in params)], what)
