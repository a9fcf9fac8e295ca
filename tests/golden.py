"""Trainings whose final weights are known bit for bit: data and weights come from integer arithmetic alone.

torch's generators are not stable over instruction sets for normal samples, so nothing here uses them. The hashes belong
to version 1 of the numerics contract; another path (another device, another language) must reproduce them.
"""

import hashlib

import numpy as np
import torch

import pytorch_ext.functional as F
import pytorch_ext.nn as nn
from pytorch_ext import TrainStep, optim


def integers(count, salt):
    """``count`` well mixed 32-bit integers."""
    x = np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (salt + 1) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def uniform(shape, salt, scale):
    """float32 in [-scale, scale), scale a power of two: every value is exact."""
    values = (integers(int(np.prod(shape)), salt) >> 8) - 2**23
    return torch.from_numpy((values.astype(np.float32) * np.float32(scale / 2**23)).reshape(shape))


def labels(count, classes, salt):
    return torch.from_numpy(integers(count, salt) % classes)


def with_weights(model, scale=2.0**-4):
    """Fill a model's parameters; returns the model."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(uniform(tuple(p.shape), 1000 + i, scale))
    return model


def weight_hash(model):
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def batches(inputs, targets, size, steps):
    for step in range(steps):
        rows = torch.arange(step * size, (step + 1) * size) % len(inputs)
        yield inputs[rows], targets[rows]


def classifier():
    """784-128-10, batch 300 (> 256, no power of two), cross entropy, Adam."""
    model = with_weights(nn.Sequential(nn.Linear(784, 128, activation="relu"), nn.Linear(128, 10)))
    data = uniform((1200, 784), 1, 1.0), labels(1200, 10, 2)
    return model, data, 300, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=1e-3)


def wide_classifier():
    """Rows longer than 4096 (a second segment in every row sum), label smoothing, SGD with momentum."""
    model = with_weights(nn.Sequential(nn.Linear(33, 17, activation="tanh"), nn.Linear(17, 5003)))
    data = uniform((600, 33), 3, 2.0), labels(600, 5003, 4)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return model, data, 300, loss, optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)


def regression():
    """Every other activation, mean squared error, AdamW."""
    layers = [nn.Linear(21, 37, activation="gelu"), nn.Linear(37, 19, activation="silu"), nn.Linear(19, 3)]
    model = with_weights(nn.Sequential(*layers, nn.Sigmoid()), 2.0**-2)
    data = uniform((900, 21), 5, 2.0), uniform((900, 3), 6, 1.0)
    return model, data, 300, nn.MSELoss(), optim.AdamW(model.parameters(), lr=1e-2)


def binary():
    """Softmax inside the model, binary cross entropy with logits, clipped gradients."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(11, 70), nn.Linear(70, 1)

        def forward(self, x):
            return self.second(F.softmax(self.first(x), dim=1)).squeeze(1)

    model = with_weights(Model(), 1.0)
    data = uniform((900, 11), 7, 4.0), labels(900, 2, 8).float()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    optimizer.register_step_pre_hook(lambda *_: clip(model))
    return model, data, 300, nn.BCEWithLogitsLoss(), optimizer


MAX_NORM = 0.05


def clip(model):
    optim.clip_grad_norm_(model.parameters(), MAX_NORM)


TRAININGS = {f.__name__: f for f in (classifier, wide_classifier, regression, binary)}

HASHES = {  # contract version 1: weights after so many steps
    "classifier": {
        1: "4cd0c9cb95e82272",
        5: "950d7609ad919376",
        20: "e9703fee316d9e3e",
        500: "07396531fcfcf21e",
    },
    "wide_classifier": {1: "adecb53874ad0e63", 5: "963df6156d30cf09"},
    "regression": {1: "5b87d4c9acde1379", 5: "7c5fba723c05da16", 20: "9f35cfc37a959bd1"},
    "binary": {1: "fec1faa0f800dacf", 5: "5ea82a2a62591ac5", 20: "b2f10c53a72fbf5c"},
}


def train(name, steps, device="cpu"):
    """Hash of the weights after each of ``steps`` (ascending step counts)."""
    model, data, size, loss_function, optimizer = TRAININGS[name]()
    model.to(device)
    data = [t.to(device) for t in data]
    found = {}
    for step, (x, y) in enumerate(batches(*data, size, max(steps)), start=1):
        optimizer.zero_grad()
        loss_function(model(x), y).backward()
        optimizer.step()
        if step in steps:
            found[step] = weight_hash(model)
    return found


def train_by_step(name, steps, place=lambda t: t, make=TrainStep):
    """The same by TrainStep, or what else `make` is; place(tensor) is the tensor on the device."""
    model, data, size, loss_function, optimizer = TRAININGS[name]()
    clips = bool(optimizer._optimizer_step_pre_hooks)
    optimizer._optimizer_step_pre_hooks.clear()  # the clipping, which reads .grad
    step = make(model._apply(place), loss_function, optimizer, max_norm=MAX_NORM if clips else None)
    found = {}
    for n, (x, y) in enumerate(batches(*data, size, max(steps)), start=1):
        step(place(x), place(y))
        if n in steps:
            found[n] = weight_hash(model)
    return found
