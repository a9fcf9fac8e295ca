"""TrainStep's steps as one launch: the CPU's bits for every number of blocks, and which models take it.

As test_train_step_on_device.py, for a card or the emulated device.
"""

import copy

import golden
import pytest
import torch
from conftest import has_cuda, needs_native
from test_train_step import adam, adamw, assert_all_same_bits, mlp, ns, sgd, tensors_of, two_groups
from test_train_step_on_device import IS_EMULATED, emulator, on_cpu, on_device, place
from torch.utils.data import DataLoader, TensorDataset

from pytorch_ext import TrainStep, optim

pytestmark = [
    needs_native,
    pytest.mark.skipif(not has_cuda and not IS_EMULATED, reason="there is no CUDA device, nor an emulated one"),
]
BLOCKS = [1, 2, 4, 16]


def classes(count):
    return lambda n, g: torch.randint(count, (n,), generator=g)


def values(*shape):
    return lambda n, g: torch.rand(n, *shape, generator=g)


def some_ignored(n, generator):
    target = torch.randint(5, (n,), generator=generator)
    return torch.where(target == 1, -100, target)


def frozen(module, *names):
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


def deep(*sizes, activations=("Tanh", "GELU", "SiLU", "Sigmoid"), last=()):
    layers = [ns.Linear(sizes[0], sizes[1])]
    for i, (k, n) in enumerate(zip(sizes[1:], sizes[2:], strict=False)):
        layers += [getattr(ns, activations[i % len(activations)])(), ns.Linear(k, n, bias=i % 2 == 0)]
    return ns.Sequential(ns.Flatten(), *layers, *last)


def squared(model):
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


CASES = {  # model, inputs, target, loss, optimiser, batches
    "1-1": (lambda: ns.Sequential(ns.Linear(1, 1)), 1, values(1), ns.MSELoss(), sgd, [5, 5, 5, 1]),
    "2-5-2": (lambda: mlp("ReLU", sizes=(2, 5, 2)), 2, values(2), ns.MSELoss(), sgd, [5] * 3),
    "10-5-5": (lambda: mlp("ReLU", sizes=(10, 5, 5)), 10, classes(5), ns.CrossEntropyLoss(), adam, [3] * 4),
    "10-5-1": (
        lambda: mlp("ReLU", ns.Sigmoid(), sizes=(10, 5, 1)),
        10,
        values(1),
        ns.BCELoss(),
        adam,
        [32, 32, 7],
    ),
    "784-128-10": (lambda: mlp("ReLU", sizes=(784, 128, 10)), 784, classes(10), ns.CrossEntropyLoss(), adam, [64, 64, 3]),
    "chunks of everything, odd sizes": (
        lambda: deep(531, 37, 301, 7),
        531,
        values(7),
        ns.MSELoss(reduction="sum"),
        lambda m: adamw(m, weight_decay=0.1, lr=1e-3),
        [270, 1, 259],
    ),
    "many chunks": (lambda: deep(1300, 3, 5), 1300, values(5), ns.BCEWithLogitsLoss(), squared, [9, 66]),
    "five layers": (lambda: deep(8, 12, 16, 20, 8, 5), 8, some_ignored, ns.CrossEntropyLoss(), adam, [33, 33, 64]),
    "a last activation, smoothing, weights": (
        lambda: deep(12, 20, 5, last=[ns.GELU()]),
        12,
        some_ignored,
        ns.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0]), label_smoothing=0.1),
        lambda m: adam(m, amsgrad=True, weight_decay=1e-2, maximize=True),
        [20, 70],
    ),
    "a sum, groups": (
        lambda: deep(12, 20, 5),
        12,
        classes(5),
        ns.CrossEntropyLoss(reduction="sum"),
        two_groups,
        [20, 7, 20],
    ),
    "a frozen first layer": (
        lambda: frozen(deep(12, 20, 24, 5), "1.weight", "1.bias"),
        12,
        classes(5),
        ns.CrossEntropyLoss(),
        adam,
        [20, 20],
    ),
    "frozen weights, a frozen bias": (
        lambda: frozen(deep(12, 20, 24, 5), "1.weight", "5.weight"),
        12,
        classes(5),
        ns.CrossEntropyLoss(),
        adam,
        [20, 20],
    ),
    "a loss of many segments": (lambda: deep(3, 9, 101), 3, values(101), ns.MSELoss(), sgd, [90, 30]),
    "inputs of more dimensions": (lambda: deep(12, 7, 4), (3, 4), classes(4), ns.CrossEntropyLoss(), sgd, [5, 6]),
}


def train(case, put, blocks=0, whole=False):
    """Losses, parameters and state; `whole`: by run() over all batches, which have one size but for the last one."""
    model_of, inputs, target, loss, optimizer_of, sizes = CASES[case]
    torch.manual_seed(7)
    model, loss = model_of()._apply(put), copy.deepcopy(loss)._apply(put)
    step = TrainStep(model, loss, optimizer_of(model))
    step._native.exact_blocks = blocks
    generator = torch.Generator().manual_seed(5)
    shape = inputs if isinstance(inputs, tuple) else (inputs,)
    batches = [(torch.randn(n, *shape, generator=generator), target(n, generator)) for n in sizes]
    if whole:
        x, y = (put(torch.cat(parts)) for parts in zip(*batches, strict=True))
        found = {"losses": step._native.run(x, y, torch.arange(len(x)), sizes)}
    else:
        found = {f"loss {i}": step(put(x), put(y)) for i, (x, y) in enumerate(batches)}
    return on_cpu(found | tensors_of(model, step.optimizer)), step.path


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_it_has_the_bits_of_the_cpu_for_any_number_of_blocks(case, blocks):
    expected, _ = train(case, lambda t: t, whole=True)
    if case in ("784-128-10", "chunks of everything, odd sizes") and IS_EMULATED and blocks == 2:
        pytest.skip("takes long")
    ours, path = train(case, place, blocks, whole=True)
    if blocks == 1 and case == "784-128-10":
        assert path == "launches: the weights do not fit the shared memory of a cluster"
    else:
        assert path == f"one launch of {blocks} blocks"
    assert_all_same_bits(ours, expected)
