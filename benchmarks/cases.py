"""What is measured: operators by shape, and whole training steps of the models."""

import torch
from converted_cases import converted

import pytorch_ext.functional as F
import pytorch_ext.nn as nn
from pytorch_ext import TrainStep, optim

stock = torch.nn.functional


def forward(ours, theirs, *inputs):
    """Forward only, no gradient."""
    return {"ours": lambda: ours(*inputs), "stock": lambda: theirs(*inputs)}


def both(ours, theirs, *inputs):
    """Forward and backward of everything that requires a gradient, from a scalar or an all-ones gradient."""
    wanted = [t for t in inputs if t.requires_grad]
    ones = torch.ones_like(theirs(*inputs))

    def call(function):
        return lambda: torch.autograd.grad(function(*inputs), wanted, ones)

    return {"ours": call(ours), "stock": call(theirs)}


def products():
    for m, n, k in [
        (1, 128, 784),
        (64, 128, 784),
        (64, 10, 128),
        (256, 1024, 1024),
        (1024, 1024, 1024),
        (97, 131, 517),
    ]:
        x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        yield f"linear {m}x{n}x{k} forward", forward(F.linear, stock.linear, x, w, b)
        inputs = [t.clone().requires_grad_() for t in (x, w, b)]
        yield f"linear {m}x{n}x{k} forward+backward", both(F.linear, stock.linear, *inputs)
    x, w = torch.randn(64, 784), torch.randn(128, 784)
    yield (
        "linear+relu 64x128x784 forward",
        forward(lambda x, w: F.linear(x, w, activation="relu"), lambda x, w: stock.linear(x, w).relu(), x, w),
    )
    a, b = torch.randn(16, 64, 64), torch.randn(16, 64, 64)
    yield "matmul 16x64x64x64 forward", forward(F.matmul, torch.matmul, a, b)


def rows():
    for m, n in [(3, 5), (64, 10), (4096, 1024), (512, 32000)]:
        x, target = torch.randn(m, n), torch.randint(0, n, (m,))
        y, leaf = torch.randn(m, n), x.clone().requires_grad_()
        probability = torch.rand(m, n)
        yield f"softmax {m}x{n} forward", forward(lambda x: F.softmax(x, 1), lambda x: stock.softmax(x, 1), x)
        yield f"softmax {m}x{n} forward+backward", both(lambda x: F.softmax(x, 1), lambda x: stock.softmax(x, 1), leaf)
        yield (
            f"log_softmax {m}x{n} forward",
            forward(lambda x: F.log_softmax(x, 1), lambda x: stock.log_softmax(x, 1), x),
        )
        yield f"cross_entropy {m}x{n} forward+backward", both(F.cross_entropy, stock.cross_entropy, leaf, target)
        if m * n > 1e7:
            continue
        yield f"mse_loss {m}x{n} forward+backward", both(F.mse_loss, stock.mse_loss, leaf, y)
        logits = "binary_cross_entropy_with_logits"
        yield f"{logits} {m}x{n} forward+backward", both(getattr(F, logits), getattr(stock, logits), leaf, probability)
        loss, inside = "binary_cross_entropy", probability.clone().requires_grad_()
        yield f"{loss} {m}x{n} forward+backward", both(getattr(F, loss), getattr(stock, loss), inside, probability)
        yield f"nll_loss {m}x{n} forward+backward", both(F.nll_loss, stock.nll_loss, leaf, target)
        yield f"dropout {m}x{n} forward", forward(F.dropout, stock.dropout, x)
        for name in ("relu", "sigmoid", "tanh", "gelu", "silu"):
            yield f"{name} {m}x{n} forward", forward(getattr(F, name), getattr(stock, name), x)


def last_layers():
    """The loss of a last linear layer, beside stock's two ways: logits stored whole, and its own chunks."""
    for rows, features, classes in [(64, 128, 10), (1024, 256, 8000), (2048, 512, 32000)]:
        x, w = (torch.randn(n, features).requires_grad_() for n in (rows, classes))
        target = torch.randint(0, classes, (rows,))

        def two_functions(x, w, target):
            return stock.cross_entropy(stock.linear(x, w), target)

        calls = both(F.linear_cross_entropy, two_functions, x, w, target)
        if hasattr(stock, "linear_cross_entropy"):
            options = torch.nn.LinearCrossEntropyOptions()

            def chunks(x, w, target, options=options):
                return stock.linear_cross_entropy(x, w, target, options=options)

            calls["stock, chunks"] = both(F.linear_cross_entropy, chunks, x, w, target)["stock"]
        yield f"linear_cross_entropy {rows}x{features}x{classes} forward+backward", calls


def perceptron(ns, sizes, *, fused, last=None):
    layers = []
    for i, (k, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        hidden = i < len(sizes) - 2
        layers.append(ns.Linear(k, n, activation="relu") if hidden and fused else ns.Linear(k, n))
        if hidden and not fused:
            layers.append(ns.ReLU())
    return ns.Sequential(*layers, *([last()] if last else []))


STEPS = {  # name: sizes, batch, loss, optimiser, options, last layer
    "1-1 MSE SGD, batch 5": ((1, 1), 5, "MSELoss", "SGD", {"lr": 0.01}, None),
    "2-5-2 MSE SGD, batch 5": ((2, 5, 2), 5, "MSELoss", "SGD", {"lr": 0.01}, None),
    "10-5-5 CE Adam, batch 3": ((10, 5, 5), 3, "CrossEntropyLoss", "Adam", {"lr": 1e-3}, None),
    "10-5-1 BCE Adam, batch 32": ((10, 5, 1), 32, "BCELoss", "Adam", {"lr": 1e-2}, "Sigmoid"),
    "784-128-10 CE Adam, batch 64": ((784, 128, 10), 64, "CrossEntropyLoss", "Adam", {"lr": 1e-3}, None),
    "784-1024-1024-10 CE Adam, batch 256": ((784, 1024, 1024, 10), 256, "CrossEntropyLoss", "Adam", {"lr": 1e-3}, None),
}


def step(ns, optimizers, sizes, batch, loss, optimizer, options, last, *, fused, fused_optimizer=False, native=False):
    model = perceptron(ns, sizes, fused=fused, last=getattr(ns, last) if last else None)
    more = {"fused": True} if fused_optimizer else {}
    opt = getattr(optimizers, optimizer)(model.parameters(), **options, **more)
    loss_function, x = getattr(ns, loss)(), torch.randn(batch, sizes[0])
    y = torch.randint(0, sizes[-1], (batch,)) if loss == "CrossEntropyLoss" else torch.rand(batch, sizes[-1])

    if native:
        one_call = TrainStep(model, loss_function, opt)
        return lambda: one_call(x, y)

    def run():
        opt.zero_grad()
        loss_function(model(x), y).backward()
        opt.step()

    return run


def training_steps():
    for name, case in STEPS.items():
        yield (
            f"step {name}",
            {
                "ours": step(nn, optim, *case, fused=True),
                "ours, activations as layers": step(nn, optim, *case, fused=False),
                "ours, TrainStep": step(nn, optim, *case, fused=False, native=True),
                "stock": step(torch.nn, torch.optim, *case, fused=False),
                "stock, fused optimiser": step(torch.nn, torch.optim, *case, fused=False, fused_optimizer=True),
            },
        )


def optimizer_steps(name, make_parameters):
    """The step of every provider of that optimiser, on parameters of its own."""
    providers = {}
    for provider, ns, more in [
        ("ours", optim, {}),
        ("stock", torch.optim, {}),
        ("stock, fused", torch.optim, {"fused": True}),
    ]:
        parameters = with_gradients(make_parameters())
        providers[provider] = getattr(ns, name)(parameters, lr=1e-3, **more).step
    return providers


def with_gradients(parameters):
    parameters = list(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def parameters_of_the_classifier():
    return perceptron(torch.nn, (784, 128, 10), fused=False).parameters()


def optimizers():
    many = "101,770 parameters in 4 tensors"
    for name in ("SGD", "Adam", "AdamW"):
        yield f"{name}, {many}", optimizer_steps(name, parameters_of_the_classifier)
    parameters = with_gradients(parameters_of_the_classifier())
    clip, stock_clip = optim.clip_grad_norm_, torch.nn.utils.clip_grad_norm_
    yield (
        f"clip_grad_norm_, {many}",
        {"ours": lambda: clip(parameters, 1.0), "stock": lambda: stock_clip(parameters, 1.0)},
    )


GROUPS = {
    "products": products,
    "rows": rows,
    "last layers": last_layers,
    "optimizers": optimizers,
    "steps": training_steps,
    "converted": converted,
}
