"""Runs one row of the demo: the script as it stands and its stock twin, in turns, step by step."""

import hashlib
import inspect
import statistics
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from pytorch_ext import backends

EXAMPLES = Path(__file__).resolve().parent
# The imports that differ between a script and the same script for stock PyTorch.
STOCK_IMPORTS = {
    "from pytorch_ext import": "from torch import",
    "from pytorch_ext import TrainStep, nn, optim": "from torch import nn, optim",
    "from pytorch_ext.functional import matmul": "from torch import matmul",
    "import pytorch_ext.functional as F": "import torch.nn.functional as F",
}
REPETITIONS = 100  # of a row that computes instead of training: its times are medians over these
SMALLEST_SHARE = 1e-3  # of a curve's first loss: see curve_difference


@dataclass
class Result:
    """What came out of one row. Pairs are (ours, stock); step times are (ours, stock, with TrainStep or None)."""

    row: object
    script: types.ModuleType
    data: object
    step_times: tuple  # microseconds, medians
    difference: float  # largest relative one of the loss curve, or of the figures
    digest: str  # the first 12 hexadecimal digits of SHA-256 over our final weights, or our figures
    final_losses: tuple = (None, None)
    losses: tuple = ((), ())
    models: tuple = (None, None)
    initial: dict = field(default_factory=dict)  # name -> initial weights
    figures: dict = field(default_factory=dict)  # name -> our tensor, of a row that computes
    accuracy: float | None = None
    folder: tuple = ()  # the user's own data, as argument of the script's loaders, or nothing
    complete: bool = True  # trained for the script's own number of epochs
    wrong: list = field(default_factory=list)  # messages that name a wrong figure


def load_script(name, stock=False):
    """The example `name` as a module of its own; with `stock`, the same text with torch's imports."""
    path = EXAMPLES / f"{name}.py"
    source = path.read_text()
    if stock:
        for ours, theirs in sorted(STOCK_IMPORTS.items(), key=lambda pair: -len(pair[0])):
            source = source.replace(ours, theirs)
    module = types.ModuleType(f"{name}_with_torch" if stock else name)
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def initial_weights(model):
    """A state_dict for `model` out of integer arithmetic, uniform in +-1/sqrt(fan in): the same on every machine."""
    weights, fan_in = {}, 1
    for position, (name, old) in enumerate(model.state_dict().items()):
        fan_in = old.shape[-1] if old.dim() > 1 else fan_in  # a bias follows its weight and has the same bound
        mixed = np.arange(old.numel(), dtype=np.uint64) + np.uint64((position + 1) << 32)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        unit = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
        values = unit / np.sqrt(np.float32(fan_in))
        weights[name] = torch.from_numpy(values).reshape(old.shape)
    return weights


class SharedLoader:
    """A DataLoader for readers in step: an epoch is drawn for the first, and handed again to the others.

    All see the same batches in the same order, and the time of a step holds no loading.
    """

    def __init__(self, loader, device, readers):
        self.loader, self.device, self.readers, self.served = loader, device, readers, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        if self.served % self.readers == 0:
            self.drawn = [[tensor.to(self.device) for tensor in batch] for batch in self.loader]
        self.served += 1
        return iter(self.drawn)


def shared(data, device, readers=2):
    """The `data` of a script, for so many readers, on `device`."""
    if isinstance(data, DataLoader):
        return SharedLoader(data, device, readers)
    if isinstance(data, torch.Tensor):
        return data.to(device)
    return [shared(part, device, readers) for part in data]


def in_turns(runs, report, total):
    """Draw from all iterators in turns: their values, and the median microseconds that each one took.

    torch is seeded alike before every step, so that all draw the same random numbers.
    """
    values, times = [[] for _ in runs], [[] for _ in runs]
    for step in range(total):
        for side, iterator in enumerate(runs):
            torch.manual_seed(step)
            start = time.perf_counter_ns()
            value = next(iterator)
            times[side].append(time.perf_counter_ns() - start)
            values[side].append(value)
        if step % 16 == 15:
            report(step + 1, total)
    report(total, total)
    return values, tuple(statistics.median(of_side) / 1000 for of_side in times)


def steps_per_epoch(data):
    """How many losses one epoch of `train` yields."""
    if isinstance(data, SharedLoader):
        return len(data)
    loaders = [part for part in data if isinstance(part, SharedLoader)]
    return sum(map(len, loaders)) if loaders else 1


def curve_difference(ours, stock, compared):
    """The largest relative difference of two loss curves in their first `compared` steps.

    A loss that has fallen to a thousandth of its start is a small rest of large terms; its rounding is theirs, so the
    difference is then taken relative to that thousandth.
    """
    ours, stock = np.array(ours[:compared]), np.array(stock[:compared])
    scale = np.maximum(np.abs(stock), SMALLEST_SHARE * np.abs(stock[0]))
    return float(np.max(np.abs(ours - stock) / scale))


def figure_difference(ours, stock):
    """The largest difference of two dicts of tensors, relative to the largest element of stock's tensor."""
    worst = 0.0
    for name, expected in stock.items():
        expected = expected.double()
        scale = expected.abs().max().item() or 1.0
        worst = max(worst, (ours[name].double() - expected).abs().max().item() / scale)
    return worst


def digest(tensors):
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def run_row(row, epochs=None, folder=None, device="cpu", report=lambda done, total: None):
    """Run `row` beside stock PyTorch and check its figures. `report(done, total)` hears of the progress."""
    scripts = load_script(row.name), load_script(row.name, stock=True)
    run = train_row if hasattr(scripts[0], "train") else compute_row
    result = run(row, scripts, epochs, folder, device, report)
    if not result.difference <= row.bound:  # a NaN is wrong too
        result.wrong.append(f"difference from stock: expected at most {row.bound:.0e}, got {result.difference:.3e}")
    if result.accuracy is not None and result.complete and result.accuracy < row.least_accuracy:
        result.wrong.append(f"accuracy: expected at least {row.least_accuracy:.0%}, got {result.accuracy:.1%}")
    for figure, expected in row.expected.items():
        got = result.figures[figure].tolist()
        if got != expected:
            result.wrong.append(f"{figure}: expected {expected}, got {got}")
    if row.check is not None:
        result.wrong.extend(row.check(result))
    return result


def train_row(row, scripts, epochs, folder, device, report):
    script = scripts[0]
    folder = (folder,) if folder is not None and row.takes_folder else ()
    trainings = [of_side.train for of_side in scripts]
    if has_one_call(script):
        scripts, trainings = (*scripts, script), [*trainings, script.train_in_one_call]
    data = shared(row.load_data(script, *folder), device, len(trainings))
    models = [of_side.make_model().to(device) for of_side in scripts]
    initial = initial_weights(models[0])
    for model in models:
        model.load_state_dict(initial)
    if row.prepare_stock is not None:
        row.prepare_stock(models[1])
    default = inspect.signature(script.train).parameters["epochs"].default
    epochs = default if epochs is None else epochs
    runs = [train(model, data, epochs) for train, model in zip(trainings, models, strict=True)]
    losses, step_times = in_turns(runs, report, epochs * steps_per_epoch(data))
    for run in runs:
        next(run, None)  # to the end of the script's function
    if row.prepare_stock is not None:
        step_times = time_as_they_are(scripts, trainings, data, initial, device, epochs)
    digests = [digest(model.state_dict().values()) for model in models]
    return Result(
        row=row,
        script=script,
        data=data,
        step_times=(*step_times, None)[:3],
        difference=curve_difference(*losses[:2], row.compared_steps),
        digest=digests[0],
        final_losses=(losses[0][-1], losses[1][-1]),
        losses=tuple(losses[:2]),
        models=tuple(models[:2]),
        initial=initial,
        accuracy=row.accuracy(script, models[0], device, *folder) if row.accuracy else None,
        folder=folder,
        complete=epochs >= default,
        wrong=[
            f"weights with TrainStep: expected {digests[0]}, those of the loop, got {other}"
            for other in digests[2:]
            if other != digests[0]
        ],
    )


def has_one_call(script):
    """Whether the script has a form with TrainStep, and the path has one."""
    return hasattr(script, "train_in_one_call") and backends.choice.name == "native"


def time_as_they_are(scripts, trainings, data, initial, device, epochs):
    """Step times of fresh models, for a row whose stock model was prepared for the comparison."""
    models = [of_side.make_model().to(device) for of_side in scripts]
    for model in models:
        model.load_state_dict(initial)
    runs = [train(model, data, epochs) for train, model in zip(trainings, models, strict=True)]
    return in_turns(runs, lambda done, total: None, epochs * steps_per_epoch(data))[1]


def compute_row(row, scripts, epochs, folder, device, report):
    script = scripts[0]
    data = shared(script.load_data(), device) if hasattr(script, "load_data") else []
    runs = [repeat(of_side.compute, data) for of_side in scripts]
    values, step_times = in_turns(runs, report, REPETITIONS)
    ours, stock = values[0][-1], values[1][-1]
    losses = tuple(figures["loss"].item() if "loss" in figures else None for figures in (ours, stock))
    return Result(
        row=row,
        script=script,
        data=data,
        step_times=(*step_times, None),
        difference=figure_difference(ours, stock),
        digest=digest(ours.values()),
        final_losses=losses,
        figures=ours,
    )


def repeat(compute, data):
    while True:
        yield compute(*data)
