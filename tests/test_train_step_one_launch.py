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
    "784-128-10": (
        lambda: mlp("ReLU", sizes=(784, 128, 10)),
        784,
        classes(10),
        ns.CrossEntropyLoss(),
        adam,
        [64, 64, 3],
    ),
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


RUNS = [(case, blocks) for case in CASES for blocks in BLOCKS]
SLOW = {("784-128-10", 2), ("chunks of everything, odd sizes", 2)}  # in the emulator
TOO_LARGE = [("784-128-10", 1), ("chunks of everything, odd sizes", 1)]


@pytest.mark.parametrize(("case", "blocks"), [run for run in RUNS if run not in {*SLOW, *TOO_LARGE}])
def test_it_has_the_bits_of_the_cpu_for_any_number_of_blocks(case, blocks):
    expected, _ = train(case, lambda t: t, whole=True)
    ours, path = train(case, place, blocks, whole=True)
    assert path == f"one launch of {blocks} blocks"
    assert_all_same_bits(ours, expected)


@pytest.mark.parametrize("case", [case for case, _ in TOO_LARGE])
def test_what_is_too_large_for_so_many_blocks_is_several_launches(case):
    path = train(case, place, blocks=1, whole=True)[1]
    assert path == "launches: the weights do not fit the shared memory of a cluster"


@pytest.mark.parametrize(("case", "blocks"), [("1-1", 1), ("10-5-5", 1), ("784-128-10", 16), ("five layers", 2)])
def test_it_has_as_many_blocks_as_the_work_is_worth(case, blocks):
    assert train(case, place, whole=True)[1] == f"one launch of {blocks} blocks"


@pytest.mark.parametrize("case", ["10-5-5", "a sum, groups", "a last activation, smoothing, weights"])
def test_step_by_step_it_has_the_same_bits(case):
    ours, path = train(case, place)
    assert path.startswith("one launch")
    assert_all_same_bits(ours, train(case, lambda t: t)[0])


@pytest.mark.parametrize("name", ["classifier", "regression"])
def test_training_ends_in_the_recorded_weights(name):
    hashes = {n: value for n, value in golden.HASHES[name].items() if n <= 20}
    model, (inputs, targets), size, loss_function, optimizer = golden.TRAININGS[name]()
    step = TrainStep(model._apply(place), loss_function, optimizer)
    done, found = 0, {}
    for n in hashes:
        rows = torch.arange(done * size, n * size) % len(inputs)
        step._native.run(place(inputs), place(targets), rows, [size] * (n - done))
        done, found[n] = n, golden.weight_hash(model)
    assert step.path == "one launch of 16 blocks"
    assert found == hashes


def launches():
    return emulator.launches() if IS_EMULATED else 0


def loader_of(put, count=150, size=16):
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(count, 12, generator=generator), torch.randint(4, (count,), generator=generator)
    return DataLoader(TensorDataset(*map(put, data)), size, shuffle=True, generator=torch.Generator().manual_seed(9))


def test_run_takes_all_batches_in_one_launch(monkeypatch):
    if IS_EMULATED:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t)  # torch would ask a real device
    trained = []
    for put in (place, lambda t: t):
        torch.manual_seed(3)
        model = mlp()._apply(put)
        step, before = TrainStep(model, ns.CrossEntropyLoss(), adam(model)), launches()
        means = step.run(loader_of(put), epochs=3)
        if put is place and IS_EMULATED:
            assert launches() - before == 3
        trained.append((means, on_cpu(tensors_of(model, step.optimizer))))
    assert trained[0][0] == pytest.approx(trained[1][0])
    assert_all_same_bits(trained[0][1], trained[1][1])


def test_more_batches_than_a_launch_takes_are_several_launches():
    def run(put):
        torch.manual_seed(3)
        model = mlp(sizes=(4, 3, 4))._apply(put)
        step = TrainStep(model, ns.CrossEntropyLoss(), sgd(model, momentum=0.9))
        generator, sizes = torch.Generator().manual_seed(5), [2] * 130 + [1]
        x, y = torch.randn(261, 4, generator=generator), torch.randint(4, (261,), generator=generator)
        before = launches()
        losses = step._native.run(put(x), put(y), torch.arange(261), sizes)
        return launches() - before, on_cpu({"losses": losses} | tensors_of(model, step.optimizer))

    count, ours = run(place)
    assert count == 3 or not IS_EMULATED
    assert_all_same_bits(ours, run(lambda t: t)[1])


def test_options_change_and_other_paths_take_over_between_steps():
    def run(put):
        torch.manual_seed(7)
        model = mlp(sizes=(12, 9, 4))._apply(put)
        optimizer = adam(model)
        step = TrainStep(model, ns.CrossEntropyLoss(), optimizer)
        generator, found = torch.Generator().manual_seed(5), {}
        for i in range(10):
            optimizer.param_groups[0]["lr"] = 0.01 / (i + 1)
            step._native.exact_blocks = (0, -1, 4)[i % 3]
            x, y = torch.randn(6, 12, generator=generator), torch.randint(4, (6,), generator=generator)
            found[f"loss {i}"] = step(put(x), put(y))
        return on_cpu(found | tensors_of(model, optimizer))

    assert_all_same_bits(run(place), run(lambda t: t))


def test_what_it_changes_has_a_new_version():
    model = mlp()._apply(place)
    step = TrainStep(model, ns.CrossEntropyLoss(), adam(model))
    step(place(torch.rand(3, 12)), place(torch.tensor([0, 1, 2])))
    state = step.optimizer.state[model[0].weight]
    changed = [*model.parameters(), state["exp_avg"], state["exp_avg_sq"]]
    before = [t._version for t in changed]
    step(*on_device([(torch.rand(3, 12), torch.tensor([0, 1, 2]))])[0])
    assert step.path == "one launch of 1 blocks" and state["step"] == 2
    assert all(t._version > version for t, version in zip(changed, before, strict=True))


OTHERS = {  # model, target, loss, options of TrainStep, the reason
    "dropout": (lambda: mlp("ReLU", ns.Dropout(0.5)), classes(4), ns.CrossEntropyLoss(), {}, "got a Dropout"),
    "softmax": (lambda: mlp("ReLU", ns.Softmax(1)), values(4), ns.MSELoss(), {}, "got a Softmax"),
    "clipped": (mlp, classes(4), ns.CrossEntropyLoss(), {"max_norm": 1.0}, "neither accumulated nor clipped"),
    "accumulated": (mlp, classes(4), ns.CrossEntropyLoss(), {"accumulate": 2}, "neither accumulated nor clipped"),
    "probabilities": (mlp, values(4), ns.CrossEntropyLoss(), {}, "got another loss"),
    "bytes": (mlp, lambda n, g: classes(4)(n, g).byte(), ns.CrossEntropyLoss(), {}, "expected a contiguous target"),
    "float64": (lambda: mlp().double(), classes(4), ns.CrossEntropyLoss(), {}, "expected float32 parameters"),
    "large": (lambda: mlp(sizes=(12, 4000, 4)), classes(4), ns.CrossEntropyLoss(), {}, ""),
    "many classes": (
        lambda: mlp(sizes=(12, 9, 5000)),
        classes(5000),
        ns.CrossEntropyLoss(),
        {},
        "there are too many classes",
    ),
    "too large": (
        lambda: mlp(sizes=(12, 40000, 4)),
        classes(4),
        ns.CrossEntropyLoss(),
        {},
        "the weights do not fit the shared memory of a cluster",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_path_says_why_steps_are_several_launches(case):
    model_of, target, loss, options, reason = OTHERS[case]
    model = model_of()._apply(place)
    step = TrainStep(model, loss, sgd(model), **options)
    assert step.path == "launches: there was no step yet"
    dtype = next(model.parameters()).dtype
    step(place(torch.rand(3, 12, dtype=dtype)), place(target(3, torch.Generator().manual_seed(1))))
    assert reason in step.path and step.path.startswith("launches" if reason else "one launch")


def test_a_first_step_of_several_launches_starts_the_momentum():
    def run(put):
        torch.manual_seed(7)
        model = mlp()._apply(put)
        step = TrainStep(model, ns.CrossEntropyLoss(), sgd(model, momentum=0.9, dampening=0.5))
        step._native.exact_blocks = 32  # more than there are: everything is planned, and then refused
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            step(put(torch.randn(6, 12, generator=generator)), put(torch.randint(4, (6,), generator=generator)))
            step._native.exact_blocks = 0
        return on_cpu(tensors_of(model, step.optimizer))

    assert_all_same_bits(run(place), run(lambda t: t))
