"""TrainStep while model and optimiser change under it: as the loop would go on, or an error that says what changed."""

import concurrent.futures
import copy

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_native
from test_train_step import adam, assert_all_same_bits, batches_of, classes, loop_step, mlp, ns, sgd, tensors_of
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_ext import TrainStep, optim

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


def both(between, optimizer_of=adam, count=12, model_of=mlp, **options):
    """A TrainStep and the loop with `between(step number, model, optimizer)` before each step, which may change the
    dtype: their losses, parameters and state are the same."""
    found = []
    for make in (TrainStep, loop_step):
        torch.manual_seed(7)
        model, loss = model_of(), ns.CrossEntropyLoss()
        optimizer = optimizer_of(model)
        step, of = make(model, loss, optimizer, **options), {}
        for i, (x, y) in enumerate(batches_of((12,), classes, count)):
            between(i, model, optimizer)
            of[f"loss {i}"] = step(x.to(model[0].weight.dtype), y)
        found.append(of | tensors_of(model, optimizer))
    assert_all_same_bits(*found)


def momentum(model):
    return sgd(model, momentum=0.9, dampening=0.5)


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("optimizer_of", [momentum, adam])
def test_parameters_may_be_frozen_and_thawed_between_accumulated_batches(optimizer_of, max_norm):
    def between(i, model, optimizer):
        model[0].weight.requires_grad_(i not in (4, 5, 6, 7, 10, 16))
        model[2].bias.requires_grad_(i not in (9, 10, 11, 12, 20))

    both(between, optimizer_of, count=24, accumulate=3, max_norm=max_norm)


def test_a_parameter_group_may_be_added():
    def between(i, model, optimizer):
        if i <= 4:
            model[0].zero_grad()  # whom the loop's optimiser does not know
        if i == 4:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})

    both(between, lambda model: momentum(model[2]))


def test_a_model_may_become_double():
    """The memory of float32 would be half of what is needed."""

    def between(i, model, optimizer):
        if i == 5:
            model.double()

    both(between, sgd)
    both(between, sgd, accumulate=5, count=10)


def test_state_may_be_taken_away():
    def between(i, model, optimizer):
        if i == 4:
            optimizer.state.clear()
        if i == 7:
            del optimizer.state[model[2].weight]

    both(between)
    both(between, momentum)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=2, cycle_momentum="momentum" in o.defaults),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda i: 1 / (i + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda i: 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.05),
}


@pytest.mark.parametrize("optimizer_of", [momentum, adam])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_obeyed(name, optimizer_of, recwarn):
    made = {}

    def between(i, model, optimizer):
        if i == 0:
            made[optimizer] = SCHEDULERS[name](optimizer)
        else:
            made[optimizer].step()

    both(between, optimizer_of)
    assert not recwarn.list


def test_the_average_of_the_weights_is_that_of_the_loop():
    averages = []

    def between(i, model, optimizer):
        if i == 0:
            averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
        averages[-1].update_parameters(model)

    both(between)
    assert_all_same_bits(*(dict(average.module.state_dict()) for average in averages))


# ---- what is noticed ------------------------------------------------------------------------------------------------

REPLACED = {
    "a layer": (lambda model: model.__setitem__(0, ns.Linear(12, 9)), "the module 0 that it was made with"),
    "an activation": (lambda model: model.__setitem__(1, ns.Tanh()), "the module 1 that it was made with"),
    "a layer more": (lambda model: model.append(ns.ReLU()), "the model with the 3 layers that it was made with, got 4"),
    "a layer less": (lambda model: model.__delitem__(1), "the model with the 3 layers that it was made with, got 2"),
}


@pytest.mark.parametrize("what", REPLACED)
def test_a_module_that_was_replaced_is_noticed(what):
    replace, message = REPLACED[what]
    model = mlp()
    step = TrainStep(model, ns.CrossEntropyLoss(), sgd(model))
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    step(x, y)
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    replace(model)
    with pytest.raises(RuntimeError, match=f"TrainStep: expected {message}"):
        step(x, y)
    assert all(map(torch.equal, parameters, before))


def test_what_stands_beside_the_layers_may_be_replaced():
    class Model(ns.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.metric = ns.Linear(12, 4), ns.BatchNorm1d(3)

        def forward(self, x):
            return self.layer(x)

    model = Model()
    step = TrainStep(model, ns.CrossEntropyLoss(), sgd(model.layer))
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    losses = [step(x, y)]
    model.metric, model.more = ns.BatchNorm1d(3), ns.BatchNorm1d(3)
    losses.append(step(x, y))
    assert losses[1] < losses[0]
    model.layer = ns.Linear(12, 4)
    with pytest.raises(RuntimeError, match="expected the module layer that it was made with, got another"):
        step(x, y)


def test_inference_mode_may_not_make_memory():
    """Whose tensors could not be changed later."""
    model = mlp()
    step = TrainStep(model, ns.CrossEntropyLoss(), momentum(model))
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    with torch.inference_mode(), pytest.raises(RuntimeError, match="expected no inference mode"):
        step(x, y)
    assert not step.optimizer.state
    step(x, y)


# ---- failures leave nothing -----------------------------------------------------------------------------------------


def two_groups(model, make):
    return make([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)


OPTIMIZERS = {
    "SGD": lambda parameters, **options: torch.optim.SGD(parameters, momentum=0.9, **options),
    "Adam": torch.optim.Adam,
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_group_that_is_refused_leaves_no_state_of_the_one_before(kind):
    model = mlp()
    optimizer = two_groups(model, OPTIMIZERS[kind])
    step = TrainStep(model, ns.CrossEntropyLoss(), optimizer)
    optimizer.param_groups[1]["lr"] = torch.tensor(0.1)
    with pytest.raises(RuntimeError, match="TrainStep: expected options"):
        step(torch.rand(3, 12), torch.tensor([0, 1, 2]))
    assert not optimizer.state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_first_batch_that_is_refused_leaves_no_state(kind):
    model = mlp()
    optimizer = two_groups(model, OPTIMIZERS[kind])
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(IndexError):
        step(torch.rand(3, 12), torch.tensor([0, 9, 2]))
    assert not optimizer.state


def test_a_bad_batch_of_a_loader_leaves_those_before():
    x, y = torch.rand(8, 12), torch.tensor([0, 1, 2, 3, 0, 1, 9, 2])
    torch.manual_seed(7)
    model = mlp()
    twin = copy.deepcopy(model)
    step, alone = (TrainStep(m, ns.CrossEntropyLoss(), momentum(m)) for m in (model, twin))
    with pytest.raises(IndexError):
        step.run(DataLoader(TensorDataset(x, y), 2))
    for i in (0, 2, 4):
        alone(x[i : i + 2], y[i : i + 2])
    assert_all_same_bits(tensors_of(model, step.optimizer), tensors_of(twin, alone.optimizer))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_hook_that_raises_costs_the_step_and_nothing_else(accumulate):
    torch.manual_seed(7)
    model = mlp()
    twin = copy.deepcopy(model)
    step = TrainStep(model, ns.CrossEntropyLoss(), adam(model), accumulate=accumulate)
    alone = TrainStep(twin, ns.CrossEntropyLoss(), adam(twin), accumulate=accumulate)
    x, y = torch.rand(6, 12), torch.randint(4, (6,))

    def steps(of, count):
        for _ in range(count * accumulate):
            of(x, y)

    steps(step, 1), steps(alone, 1)
    before = copy.deepcopy(tensors_of(model, step.optimizer))

    def refuse(*_):
        raise ValueError("of the hook")

    handle = step.optimizer.register_step_pre_hook(refuse)
    with pytest.raises(ValueError, match="of the hook"):
        steps(step, 1)
    assert_all_same_bits(tensors_of(model, step.optimizer), before)
    handle.remove()
    steps(step, 2), steps(alone, 2)
    assert_all_same_bits(tensors_of(model, step.optimizer), tensors_of(twin, alone.optimizer))


@pytest.mark.parametrize("fallback", [False, True])
def test_calls_from_several_threads_take_turns_where_hooks_or_the_loop_run(fallback):
    """All calls have one batch, so that their order does not matter, only their number."""
    torch.manual_seed(7)
    model = ns.Sequential(*mlp(), *[ns.LayerNorm(4)] * fallback)
    twin = copy.deepcopy(model)
    x, y, seen = torch.randn(64, 12), torch.randint(4, (64,)), []
    step, alone = (TrainStep(m, ns.CrossEntropyLoss(), adam(m), fallback=fallback) for m in (model, twin))
    step.optimizer.register_step_pre_hook(lambda *_: seen.append(1))

    def work(count):
        for _ in range(count):
            step(x, y)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [100] * 4))
    for _ in range(400):
        alone(x, y)
    assert len(seen) == 400
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(ours.detach(), theirs.detach(), "parameter")


def test_a_batch_of_another_kind_is_named():
    model = mlp()
    step = TrainStep(model, ns.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1))
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match="expected input to be an ordinary dense tensor, got .* on meta"):
        step(x.to("meta"), y)
    with pytest.raises(RuntimeError, match="expected input to be an ordinary dense tensor, got .* of layout Sparse"):
        step(x.to_sparse(), y)
