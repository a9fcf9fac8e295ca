"""Every op on one list of inputs, forward and backward: what a device is compared with the CPU by."""

import torch

import pytorch_ext.functional as F
from pytorch_ext import optim

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")


class Inputs:
    """Random tensors, the same on every device and in every call."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(7)

    def randn(self, *shape, grad=True):
        x = torch.randn(shape, generator=self.generator).to(self.dtype)
        return x.to(self.device).requires_grad_(grad)

    def uniform(self, *shape, grad=True):
        x = torch.rand(shape, generator=self.generator).mul(0.98).add(0.01).to(self.dtype)
        return x.to(self.device).requires_grad_(grad)

    def classes(self, count, *shape):
        return torch.randint(count, shape, generator=self.generator).to(self.device)


def results(output, *inputs):
    """The output and the gradients of a loss that weighs its elements differently."""
    weights = torch.arange(1, output.numel() + 1).remainder(7).sub(3).reshape(output.shape)
    grads = torch.autograd.grad(output, inputs, weights.to(output), allow_unused=True)
    return [output.detach(), *(g for g in grads if g is not None)]


def linear(make):
    for m, n, k in [
        (1, 1, 1),
        (5, 3, 2),
        (64, 10, 128),
        (300, 128, 784),
        (33, 65, 257),
        (1, 128, 784),
        (257, 260, 600),
    ]:
        x, w, b = make.randn(m, k), make.randn(n, k), make.randn(n)
        yield f"{m}x{n}x{k}", results(F.linear(x, w, b), x, w, b)
    for activation in ACTIVATIONS:
        x, w, b = make.randn(70, 300), make.randn(33, 300), make.randn(33)
        yield activation, results(F.linear(x, w, b, activation=activation), x, w, b)
    x, w = make.randn(9, 6, 4).transpose(0, 1), make.randn(5, 4)
    yield "strided", results(F.linear(x, w), x, w)
    x, w = make.randn(1, 8).expand(6, 8), make.randn(3, 8)
    yield "expanded", results(F.linear(x, w), x, w)
    x, w = make.randn(0, 8), make.randn(3, 8)
    yield "no rows", results(F.linear(x, w), x, w)


def matmul(make):
    shapes = [((7,), (7,)), ((3, 4), (4,)), ((4,), (4, 5)), ((130, 300), (300, 129)), ((6, 17, 40), (6, 40, 9))]
    for a, b in [*shapes, ((2, 1, 5, 8), (3, 8, 4)), ((5, 600, 3), (3, 7)), ((3, 4), (2, 4, 300)), ((2, 0, 3), (3, 2))]:
        x, y = make.randn(*a), make.randn(*b)
        yield f"{a} {b}", results(F.matmul(x, y), x, y)


def activation(make):
    for name in ("relu", "sigmoid", "tanh", "gelu", "silu"):
        x = make.randn(1000, 37)
        yield name, results(getattr(F, name)(x), x)


def softmax(make):
    for name in ("softmax", "log_softmax"):
        rows = [((3, 5), 1), ((64, 10), 1), ((5, 1025), 1), ((2, 5000), 1), ((1, 58101), 1)]
        for shape, dim in [*rows, ((300, 7), 0), ((4, 70, 6), 1)]:
            x = make.randn(*shape)
            yield f"{name} {shape} {dim}", results(getattr(F, name)(x, dim), x)


def scaled_dot_product_attention(make):
    for shape, keys in [((2, 3, 5, 4), 7), ((1, 2, 300, 40), 280), ((2, 130, 64), 130)]:
        for options in ({}, {"is_causal": True}, {"scale": 0.3, "attn_mask": make.classes(3, shape[-2], keys) > 0}):
            q, k, v = make.randn(*shape), make.randn(*shape[:-2], keys, shape[-1]), make.randn(*shape[:-2], keys, 9)
            yield (
                f"{shape} {keys} {list(options)}",
                results(F.scaled_dot_product_attention(q, k, v, **options), q, k, v),
            )
    q, k, v = make.randn(2, 6, 260, 16), make.randn(2, 1, 270, 16), make.randn(270, 8)
    added = make.randn(6, 1, 270, grad=False).expand(6, 260, 270)
    hidden = torch.where(torch.arange(260, device=q.device)[:, None] % 7 == 3, -torch.inf, added)
    for name, mask in (("added", added), ("hidden rows", hidden)):
        yield name, results(F.scaled_dot_product_attention(q, k, v.expand(2, 1, 270, 8), mask), q, k, v)
    x = make.randn(3, 140, 40).transpose(0, 1)  # (140, 3, 40): five heads of 8, strided
    q, k, v = (x.unflatten(-1, (5, 8)).movedim(0, -2) * scale for scale in (1, 2, 3))
    yield "strided heads", results(F.scaled_dot_product_attention(q, k, v, is_causal=True), x)


def cross_entropy(make):
    for shape in [(3, 5), (64, 10), (300, 1100), (4, 5000), (3, 7, 4, 5)]:
        for options in [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"ignore_index": 1}]:
            x, target = make.randn(*shape), make.classes(shape[1], shape[0], *shape[2:])
            weight = make.uniform(shape[1], grad=False)
            yield f"{shape} {options}", results(F.cross_entropy(x, target, **options), x)
            yield f"{shape} {options} weighted", results(F.cross_entropy(x, target, weight, **options), x)
        x, target = make.randn(*shape), F.softmax(make.randn(*shape, grad=False), 1).requires_grad_()
        yield f"{shape} probabilities", results(F.cross_entropy(x, target), x, target)


def linear_cross_entropy(make):
    for rows, features, sizes in [(5, 3, (4,)), (600, 40, (3, 2)), (300, 8, (8200,)), (4200, 2, (30,))]:
        for options in [{}, {"reduction": "sum", "label_smoothing": 0.1}, {"reduction": "none", "ignore_index": 1}]:
            x, w, b = make.randn(rows, features), make.randn(*sizes, features), make.randn(*sizes)
            target, weight = make.classes(sizes[0], rows, *sizes[1:]), make.uniform(sizes[0], grad=False)
            loss = F.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, **options)
            yield f"{rows}x{features} {sizes} {options}", results(loss, x, w, b)


def nll_loss(make):
    for shape in [(3, 5), (300, 11), (3, 7, 4, 5)]:
        for reduction in ("mean", "sum", "none"):
            x, target = make.randn(*shape), make.classes(shape[1], shape[0], *shape[2:])
            yield f"{shape} {reduction}", results(F.nll_loss(x, target, reduction=reduction), x)


def elementwise_loss(make):
    for shape in [(1,), (5, 3), (300, 70)]:
        for reduction in ("mean", "sum", "none"):
            x, y = make.randn(*shape), make.randn(*shape)
            yield f"mse_loss {shape} {reduction}", results(F.mse_loss(x, y, reduction=reduction), x, y)
            p, q, w = make.uniform(*shape), make.uniform(*shape), make.uniform(*shape, grad=False)
            loss = F.binary_cross_entropy(p, q, w, reduction=reduction)
            yield f"binary_cross_entropy {shape} {reduction}", results(loss, p, q)
            loss = F.binary_cross_entropy_with_logits(x, q, reduction=reduction, pos_weight=w[..., :1].detach())
            yield f"binary_cross_entropy_with_logits {shape} {reduction}", results(loss, x, q)


def dropout(make):
    for count in (1, 5, 1000, 100_003):
        x = make.randn(count)
        torch.manual_seed(3)
        yield f"{count}", results(F.dropout(x, 0.3), x)


def optimizers(make):
    options = {
        "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}],
        "Adam": [{"lr": 1e-2}, {"lr": 1e-2, "amsgrad": True, "weight_decay": 1e-2, "maximize": True}],
        "AdamW": [{"lr": 1e-2}],
    }
    for name, choices in options.items():
        for chosen in choices:
            params = [make.randn(*shape) for shape in ((1,), (1023,), (128, 784), (5, 3), (0,))]
            optimizer = getattr(optim, name)(params, **chosen)
            for _ in range(3):
                for p in params:
                    p.grad = make.randn(*p.shape, grad=False)
                norm = optim.clip_grad_norm_(params, 2.0)
                optimizer.step()
            yield f"{name} {chosen}", [norm, *(p.detach() for p in params)]


OPS = {
    f.__name__: f
    for f in (
        linear,
        matmul,
        activation,
        softmax,
        scaled_dot_product_attention,
        cross_entropy,
        linear_cross_entropy,
        nll_loss,
        elementwise_loss,
        dropout,
        optimizers,
    )
}


def run(op, device, dtype=torch.float32):
    """{case: tensors} of one op on a device."""
    return dict(OPS[op](Inputs(device, dtype)))
