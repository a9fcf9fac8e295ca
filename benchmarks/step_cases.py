"""Whole training steps of the models: ours, as one call of TrainStep, and stock's ways."""

import torch
from providers import in_medium_precision

import pytorch_ext.nn as nn
from pytorch_ext import TrainStep, optim


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


def step(ns, optimizers, case, *, fused, fused_optimizer=False, native=False, compile=False):
    sizes, batch, loss, optimizer, options, last = case
    model = perceptron(ns, sizes, fused=fused, last=getattr(ns, last) if last else None)
    more = {"fused": True} if fused_optimizer else {}
    opt = getattr(optimizers, optimizer)(model.parameters(), **options, **more)
    loss_function, x = getattr(ns, loss)(), torch.randn(batch, sizes[0])
    y = torch.randint(0, sizes[-1], (batch,)) if loss == "CrossEntropyLoss" else torch.rand(batch, sizes[-1])

    if compile:
        model = torch.compile(model)
    if native:
        one_call = TrainStep(model, loss_function, opt)
        return lambda: one_call(x, y)

    def run():
        opt.zero_grad()
        loss_function(model(x), y).backward()
        opt.step()

    return run


def operations_of_a_step(sizes, batch):
    """Three products per layer; the first one needs no gradient of its input."""
    layers = [2 * batch * k * n for k, n in zip(sizes, sizes[1:], strict=False)]
    return 3 * sum(layers) - layers[0]


def training_steps():
    for name, case in STEPS.items():
        providers = {
            "ours": step(nn, optim, case, fused=True),
            "ours, activations as layers": step(nn, optim, case, fused=False),
            "ours, TrainStep": step(nn, optim, case, fused=False, native=True),
            "stock": step(torch.nn, torch.optim, case, fused=False),
            "stock, fused optimiser": step(torch.nn, torch.optim, case, fused=False, fused_optimizer=True),
        }
        providers["bfloat16 inside"] = in_medium_precision(step(torch.nn, torch.optim, case, fused=False))
        torch._dynamo.reset()
        compiled = step(torch.nn, torch.optim, case, fused=False, fused_optimizer=True, compile=True)
        providers["stock, compiled"] = compiled
        yield f"step {name}", providers, {"operations": operations_of_a_step(case[0], case[1])}
