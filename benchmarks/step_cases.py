"""Whole training steps of the models: ours, as one call of TrainStep, and stock's ways."""

import torch
from providers import in_medium_precision
from torch.utils.data import DataLoader, TensorDataset

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


def epoch(ns, optimizers, case, *, native, batches=64, fused_optimizer=False):
    """All batches of data in memory: by TrainStep.run, or as a loop over slices; the mean loss."""
    torch.manual_seed(0)
    sizes, batch, loss, optimizer, options, last = case
    model = perceptron(ns, sizes, fused=False, last=getattr(ns, last) if last else None)
    more = {"fused": True} if fused_optimizer else {}
    opt, loss_function = getattr(optimizers, optimizer)(model.parameters(), **options, **more), getattr(ns, loss)()
    x, count = torch.randn(batches * batch, sizes[0]), batches * batch
    y = torch.randint(0, sizes[-1], (count,)) if loss == "CrossEntropyLoss" else torch.rand(count, sizes[-1])
    if native:
        one_call, loader = TrainStep(model, loss_function, opt), DataLoader(TensorDataset(x, y), batch)
        return lambda: one_call.run(loader)[0]

    def run():
        total = 0.0
        for some, wanted in zip(x.split(batch), y.split(batch), strict=True):
            opt.zero_grad()
            value = loss_function(model(some), wanted)
            value.backward()
            opt.step()
            total = total + value.detach()
        return float(total) / batches

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


def training_epochs():
    """64 steps each, which TrainStep.run gives a device as one launch where the model fits."""
    for name, case in STEPS.items():
        providers = {
            "ours": epoch(nn, optim, case, native=True),
            "stock": epoch(torch.nn, torch.optim, case, native=False),
            "stock, fused optimiser": epoch(torch.nn, torch.optim, case, native=False, fused_optimizer=True),
        }
        yield f"64 steps {name}", providers, {"operations": 64 * operations_of_a_step(case[0], case[1])}
