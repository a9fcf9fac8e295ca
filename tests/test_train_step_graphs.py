"""TrainStep's graphs on a device: which batches are one, what they cost the host, and that they leave nothing out.

As test_train_step_on_device.py, for a card or the emulated device.
"""

import contextlib
import copy

import golden
import pytest
import torch
from conftest import has_cuda, needs_native
from test_train_step import CASES, adam, adamw, assert_all_same_bits, mlp, ns, sgd, tensors_of
from test_train_step_on_device import (
    IS_EMULATED,
    by_graphs,
    captured,
    emulator,
    needs_emulator,
    on_cpu,
    place,
    side_stream,
)

from pytorch_ext import TrainStep, optim

pytestmark = [
    needs_native,
    pytest.mark.skipif(not has_cuda and not IS_EMULATED, reason="there is no CUDA device, nor an emulated one"),
]


@contextlib.contextmanager
def graphs(captures, launches):
    """So many graphs are captured and launched in the `with` block, as far as anybody can tell."""
    before = (emulator.captures(), emulator.graph_launches()) if IS_EMULATED else None
    yield
    if IS_EMULATED:
        assert (emulator.captures() - before[0], emulator.graph_launches() - before[1]) == (captures, launches)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_that_comes_again_is_a_graph(case):
    model_of, loss, target, optimizer_of, options = CASES[case]

    def run(put):
        torch.manual_seed(7)
        model, loss_function = model_of()._apply(put), copy.deepcopy(loss)._apply(put)
        step = by_graphs(model, loss_function, optimizer_of(model), **options)
        generator = torch.Generator().manual_seed(5)
        batches = [(torch.randn(6, 12, generator=generator), target(6, generator)) for _ in range(9)]
        losses = {f"loss {i}": step(put(x), put(y)) for i, (x, y) in enumerate(batches)}
        return on_cpu(losses | tensors_of(model, step.optimizer))

    places = options.get("accumulate", 1)  # of a batch among those of a step: the first, one between, the last
    later = places - 1 if "max_norm" in options else 0  # the first update's memory is new to what came before it
    with graphs(captures=places, launches=9 - places - later):
        ours = run(place)
    assert_all_same_bits(ours, run(lambda t: t))


@needs_emulator
@pytest.mark.parametrize("case", CASES)
def test_a_graph_is_all_that_the_host_sends(case):
    model_of, loss, target, optimizer_of, options = CASES[case]
    model = model_of()._apply(place)
    step = by_graphs(model, copy.deepcopy(loss)._apply(place), optimizer_of(model), **options)
    x, y = place(torch.rand(6, 12)), place(target(6, torch.Generator().manual_seed(1)))
    for _ in range(6):
        step(x, y)
    before = on_cpu(tensors_of(model, step.optimizer))
    for _ in range(3):
        sent, waits = emulator.sent(), emulator.waits()
        step(x, y)
        assert (emulator.sent() - sent, emulator.waits() - waits) == (1, 0)
    after = on_cpu(tensors_of(model, step.optimizer))
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", golden.HASHES)
def test_training_by_graphs_ends_in_the_recorded_weights(name):
    most = {"classifier": 5}.get(name, 20) if IS_EMULATED else 500
    hashes = {n: value for n, value in golden.HASHES[name].items() if n <= most}
    with graphs(captures=1, launches=max(hashes) - 1):
        assert golden.train_by_step(name, hashes, place, by_graphs) == hashes


def change_everything(i, model, loss, optimizer):
    """What may change between two steps, from outside, at step i."""
    group, (first, dropout, last) = optimizer.param_groups[0], (model[0], model[2], model[-1])
    group["lr"] = 0.01 / (i + 1)
    if i == 3:
        group["betas"], group["weight_decay"] = (0.8, 0.95), 0.01
    if i in (5, 7):
        dropout.p = 0.25 * (i - 4)
    if i in (8, 10):
        model.train(i == 10)
    if i in (12, 14):
        first.weight.requires_grad_(i == 14)
    if i == 16:
        last.weight.data = last.weight.data * 0.5
    if i == 18:
        with torch.no_grad():
            loss.weight.mul_(2), first.bias.zero_()
    if i == 20:
        found = optimizer.state_dict()
        state = {p: {key: value.clone() for key, value in of.items()} for p, of in found["state"].items()}
        optimizer.load_state_dict({"state": state, "param_groups": found["param_groups"]})


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("make", [TrainStep, by_graphs])
@pytest.mark.parametrize("sizes", [(6,), (6, 9), (6, 6, 40), (5, 6, 7, 8, 9, 10, 11, 12, 13, 14)], ids=str)
def test_what_changes_between_steps_is_no_part_of_a_graph(sizes, make, options):
    def run(put):
        torch.manual_seed(7)
        model = mlp("ReLU", ns.Dropout(0.5), ns.Linear(4, 4))
        model = ns.Sequential(model[0], model[1], ns.Dropout(0.5), *model[2:])._apply(put)
        loss = ns.CrossEntropyLoss(weight=put(torch.tensor([0.5, 2.0, 1.0, 0.25])), label_smoothing=0.1)
        optimizer = adam(model)
        step = make(model, loss, optimizer, **options)
        generator = torch.Generator().manual_seed(5)
        found = {}
        for i in range(24):
            n = sizes[i % len(sizes)]
            change_everything(i, model, loss, optimizer)
            x, y = torch.randn(n, 12, generator=generator), torch.randint(4, (n,), generator=generator)
            found[f"loss {i}"] = step(put(x), put(y))
            if i == 9:  # memory grows, and nothing runs
                with pytest.raises(RuntimeError, match="TrainStep: expected"):
                    step(put(torch.rand(99, 12)), put(torch.zeros(99, 3, dtype=torch.int64)))
        return on_cpu(found | tensors_of(model, optimizer))

    before = emulator.graph_launches() if IS_EMULATED else 0
    ours = run(place)
    assert not IS_EMULATED or make is TrainStep or len(sizes) > 8 or emulator.graph_launches() - before >= 2
    assert_all_same_bits(ours, run(lambda t: t))


def test_many_sizes_keep_few_graphs():
    if IS_EMULATED:
        before = emulator.graphs_alive()
    model = mlp()._apply(place)
    step = by_graphs(model, ns.CrossEntropyLoss(), adam(model))
    for _ in range(2):
        for n in range(30, 10, -1):
            for _ in range(3):
                step(place(torch.rand(n, 12)), place(torch.randint(4, (n,))))
    if IS_EMULATED:
        assert emulator.graphs_alive() - before <= 2 * 8  # what can be launched, and what it was made of
        del step
        assert emulator.graphs_alive() == before


@pytest.mark.parametrize("target", ["bytes", "strided"])
def test_targets_that_are_copied_first_have_the_bits_of_the_cpu(target):
    def run(put):
        torch.manual_seed(7)
        model = mlp()._apply(put)
        step = TrainStep(model, ns.CrossEntropyLoss(), adam(model))
        for _ in range(5):
            x, y = torch.rand(8, 12), torch.randint(4, (8, 2))
            step(put(x), put(y[:, 0].byte()) if target == "bytes" else put(y)[:, 0])
        return on_cpu(tensors_of(model, step.optimizer))

    assert_all_same_bits(run(place), run(lambda t: t))


def test_in_a_capture_of_the_user_s_nothing_is_captured_inside_and_adam_is_refused():
    x, y = place(torch.rand(5, 12)), place(torch.randint(4, (5,)))
    for optimizer_of in (sgd, adam):
        model = mlp()._apply(place)
        step = TrainStep(model, ns.CrossEntropyLoss(), optimizer_of(model))
        with side_stream():
            for _ in range(3):
                step(x, y)
            before = on_cpu(tensors_of(model, step.optimizer))
            with captured() as replay:
                if optimizer_of is adam:
                    with pytest.raises(RuntimeError, match="in a graph capture SGD"):
                        step(x, y)
                    continue
                step(x, y)
            assert_all_same_bits(on_cpu(tensors_of(model, step.optimizer)), before)
            replay()
            after = on_cpu(tensors_of(model, step.optimizer))
        twin = mlp()
        twin.load_state_dict({name: before[name] for name in twin.state_dict()})
        TrainStep(twin, ns.CrossEntropyLoss(), sgd(twin))(x.cpu(), y.cpu())
        assert_all_same_bits({name: after[name] for name in twin.state_dict()}, twin.state_dict())


# ---- the update -----------------------------------------------------------------------------------------------------


def several_groups(model, make=optim.Adam, **options):
    first, *rest = model.parameters()
    return make([{"params": [first], "lr": 0.03}, {"params": rest}], **{"lr": 0.01, **options})


OPTIMIZERS = {
    "SGD": sgd,
    "momentum": lambda m: sgd(m, momentum=0.9, dampening=0.25, weight_decay=0.01),
    "nesterov, groups": lambda m: several_groups(m, optim.SGD, momentum=0.9, nesterov=True),
    "Adam": adam,
    "amsgrad, groups": lambda m: several_groups(m, amsgrad=True, weight_decay=0.01),
    "AdamW": adamw,
}
CHANGES = {  # of a group's options, to numbers that no two steps have in common
    "lr": lambda i: 0.01 / (i + 1),
    "weight_decay": lambda i: 0.001 * i,
    "maximize": lambda i: i % 2 == 1,
    "eps": lambda i: 1e-8 * (i + 1),
    "betas": lambda i: (0.9 - 0.01 * i, 0.99),
    "momentum": lambda i: 0.5 + 0.01 * i,
    "dampening": lambda i: 0.01 * i,
    "nesterov": lambda i: i % 2 == 1,
}


def trained_with(between, put, optimizer_of, steps=9, make=by_graphs):
    """Losses, parameters and state after equal batches, with `between(step number, optimizer, model)` before each."""
    torch.manual_seed(7)
    model = mlp()._apply(put)
    optimizer = optimizer_of(model)
    step = make(model, ns.CrossEntropyLoss(), optimizer)
    generator, found = torch.Generator().manual_seed(5), {}
    for i in range(steps):
        between(i, optimizer, model)
        x, y = torch.randn(6, 12, generator=generator), torch.randint(4, (6,), generator=generator)
        found[f"loss {i}"] = step(put(x), put(y))
    return on_cpu(found | tensors_of(model, optimizer))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_options_change_and_the_graph_stays(kind):
    def change(i, optimizer, model):
        for group in optimizer.param_groups:
            changes = {name: of(i) for name, of in CHANGES.items() if name in group}
            if not group.get("momentum", 1) or group.get("dampening"):  # no momentum may come, nor nesterov
                changes = {name: value for name, value in changes.items() if name not in ("momentum", "nesterov")}
            if group.get("nesterov"):
                changes.pop("dampening")
            group.update(changes)

    with graphs(captures=1, launches=8):
        ours = trained_with(change, place, OPTIMIZERS[kind])
    assert_all_same_bits(ours, trained_with(change, lambda t: t, OPTIMIZERS[kind]))


schedulers = torch.optim.lr_scheduler
SCHEDULERS = {
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=20),  # betas or momentum too
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-1, step_size_up=2, cycle_momentum="momentum" in o.defaults),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda i: 1 / (i + 1)),
}


@pytest.mark.parametrize("kind", ["momentum", "Adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_change_the_numbers_of_a_graph(name, kind, recwarn):
    def run(put):
        made = []

        def between(i, optimizer, model):
            made[0].step() if made else made.append(SCHEDULERS[name](optimizer))

        return trained_with(between, put, OPTIMIZERS[kind])

    with graphs(captures=1, launches=8):
        ours = run(place)
    assert_all_same_bits(ours, run(lambda t: t))
    assert not recwarn.list


def test_parameters_that_have_taken_fewer_steps_keep_their_own_numbers():
    def between(i, optimizer, model):
        model[0].weight.requires_grad_(i not in (2, 3))

    with graphs(captures=3, launches=6):  # all, all but one, all of two counts
        ours = trained_with(between, place, adam)
    assert_all_same_bits(ours, trained_with(between, lambda t: t, adam))


def test_a_step_hook_takes_the_update_out_of_the_graph_and_gives_it_back():
    def run(put):
        seen, handles = [], []

        def between(i, optimizer, model):
            if i == 4:
                handles.append(optimizer.register_step_pre_hook(lambda *_: seen.append(model[0].weight.clone())))
            if i == 7:
                handles.pop().remove()

        found = trained_with(between, put, adam, steps=10)
        return found | on_cpu({f"seen {i}": t.detach() for i, t in enumerate(seen)})

    with graphs(captures=2, launches=8):
        ours = run(place)
    assert_all_same_bits(ours, run(lambda t: t))
    assert not torch.equal(ours["seen 0"], ours["seen 2"])


def test_more_groups_than_a_graph_has_room_for_are_launched_one_by_one():
    def run(put):
        torch.manual_seed(7)
        model = ns.Sequential(*[ns.Linear(2, 2) for _ in range(60)])._apply(put)
        optimizer = optim.Adam([{"params": [p]} for p in model.parameters()], lr=0.01)
        step = by_graphs(model, ns.MSELoss(), optimizer)
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            step(put(torch.randn(3, 2, generator=generator)), put(torch.randn(3, 2, generator=generator)))
        return on_cpu(tensors_of(model, optimizer))

    with graphs(captures=0, launches=0):
        ours = run(place)
    assert_all_same_bits(ours, run(lambda t: t))


# ---- failures -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused(function):
    emulator.refuse(function)
    try:
        yield
    finally:
        emulator.refuse("")


@needs_emulator
@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaGraphExecKernelNodeSetParams"])
def test_without_graphs_everything_is_launched_one_by_one(function):
    with refused(function):
        ours = trained_with(lambda *_: None, place, adam)
    assert_all_same_bits(ours, trained_with(lambda *_: None, lambda t: t, adam))


@needs_emulator
@pytest.mark.parametrize("function", ["cudaGraphExecKernelNodeSetParams", "cudaGraphLaunch"])
@pytest.mark.parametrize("kind", ["momentum", "Adam"])
def test_a_graph_that_is_not_launched_changes_nothing(kind, function):
    model = mlp()._apply(place)
    step = by_graphs(model, ns.CrossEntropyLoss(), OPTIMIZERS[kind](model))
    x, y = place(torch.rand(6, 12)), place(torch.tensor([0, 1, 2, 3, 0, 1]))
    for _ in range(4):
        step(x, y)
    before = on_cpu(tensors_of(model, step.optimizer))
    with refused(function), pytest.raises(RuntimeError, match="TrainStep: CUDA error"):
        step(x, y)
    assert_all_same_bits(on_cpu(tensors_of(model, step.optimizer)), before)
    with graphs(captures=0, launches=1):
        step(x, y)
    after = on_cpu(tensors_of(model, step.optimizer))
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


@needs_emulator
@pytest.mark.parametrize("make", [TrainStep, by_graphs])
@pytest.mark.parametrize("kind", ["momentum", "Adam"])
def test_a_first_step_without_memory_leaves_the_optimiser_s_state_empty(kind, make):
    torch.manual_seed(7)
    model = mlp()._apply(place)
    step = make(model, ns.CrossEntropyLoss(), OPTIMIZERS[kind](model))
    x, y = place(torch.rand(6, 12)), place(torch.tensor([0, 1, 2, 3, 0, 1]))
    with refused("allocate"), pytest.raises(RuntimeError, match="out of memory"):
        step(x, y)
    assert not step.optimizer.state
    step(x, y)
    ours = on_cpu(tensors_of(model, step.optimizer))
    torch.manual_seed(7)
    twin = mlp()
    other = TrainStep(twin, ns.CrossEntropyLoss(), OPTIMIZERS[kind](twin))
    other(x.cpu(), y.cpu())
    assert_all_same_bits(ours, tensors_of(twin, other.optimizer))
