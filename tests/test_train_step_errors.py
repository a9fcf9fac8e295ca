"""TrainStep: what it refuses, and that a step that fails leaves everything as it was."""

import concurrent.futures
import copy
from functools import partial

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_native
from torch import nn

import pytorch_ext
from pytorch_ext import TrainStep, native

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


def mlp(*more):
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), *more)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.first(x)


class Branching(Residual):
    def forward(self, x):
        return self.first(x) if x.sum() > 0 else x


class OnlyInTraining(Residual):
    def forward(self, x):
        return self.first(x).relu() if self.training else self.first(x)


class MyLinear(nn.Linear):
    pass


def with_hook():
    model = mlp()
    model[1].register_forward_hook(lambda *_: None)
    return model


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def mixed():
    model = mlp()
    model[2].double()
    return model


def transposed():
    model = mlp()
    model[0].weight = nn.Parameter(torch.zeros(6, 5).t())
    return model


MODELS = {
    "a transposed weight": (transposed, r"contiguous parameters, got 0.weight of strides \(1, 5\)"),
    "a convolution": (lambda: nn.Sequential(nn.Conv1d(6, 6, 1), nn.Linear(6, 3)), r"got 0, a Conv1d"),
    "a residual": (Residual, r"got <built-in function add>"),
    "control flow": (Branching, r"a forward that torch.fx can trace"),
    "two modes": (OnlyInTraining, r"the same in training and evaluation, got one that reads self.training"),
    "a subclass": (lambda: nn.Sequential(MyLinear(6, 3)), r"got 0, a MyLinear"),
    "a hook": (with_hook, r"modules without hooks, got hooks on 1"),
    "tied weights": (tied, r"parameters that belong to one layer, got 2.weight, which is 0.weight"),
    "two dtypes": (mixed, r"one dtype on one device, got 2.weight: torch.float64"),
    "no parameter": (nn.ReLU, r"a model with a Linear layer, got none"),
    "softmax without dim": (lambda: mlp(nn.Softmax()), r"a softmax with its dim given"),
}


def attempt(model, loss=None, optimizer=torch.optim.SGD, **options):
    parameters = list(model.parameters()) or [nn.Parameter(torch.zeros(1))]
    return TrainStep(model, loss or nn.MSELoss(), optimizer(parameters, lr=0.1), **options)


@pytest.mark.parametrize("case", MODELS)
def test_a_model_outside_the_set_is_refused_with_the_reason(case):
    make, message = MODELS[case]
    model = make().eval().train(case != "no parameter")
    with pytest.raises(ValueError, match=f"^TrainStep: expected .*{message}"):
        attempt(model)
    assert all(module.training == model.training for module in model.modules())


def test_losses_and_optimisers_outside_the_set_are_refused():
    with pytest.raises(ValueError, match="a loss module, one of CrossEntropyLoss.* got L1Loss"):
        attempt(mlp(), nn.L1Loss())
    with pytest.raises(ValueError, match="reduction mean or sum, got none"):
        attempt(mlp(), nn.MSELoss(reduction="none"))
    with pytest.raises(ValueError, match="the optimiser SGD, Adam or AdamW, got RMSprop"):
        attempt(mlp(), optimizer=torch.optim.RMSprop)
    with pytest.raises(TypeError, match="TrainStep: expected model to be a Module, got int"):
        TrainStep(3, nn.MSELoss(), None)
    with pytest.raises(TypeError, match="TrainStep: expected optimizer to be an Optimizer, got NoneType"):
        TrainStep(mlp(), nn.MSELoss(), None)
    with pytest.raises(ValueError, match="expected accumulate to be a positive integer, got 0"):
        attempt(mlp(), accumulate=0)
    with pytest.raises(TypeError, match="expected max_norm to be a number, got '1'"):
        attempt(mlp(), max_norm="1")
    with pytest.raises(ValueError, match="the backend native, got stock"), pytorch_ext.backend("stock"):
        attempt(mlp())


def test_the_fallback_runs_the_loop_and_says_why():
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    twin = copy.deepcopy(model)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    step = TrainStep(model, nn.MSELoss(), optimizer, fallback=True, accumulate=2, max_norm=0.1)
    assert "LayerNorm" in step.reason
    for _ in range(4):
        x, y = torch.randn(5, 6), torch.randn(5, 3)
        loss = step(x, y)
        expected = nn.MSELoss()(twin(x), y)
        expected.backward()
        if _ % 2:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            other.step()
            other.zero_grad()
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert attempt(mlp(), fallback=True).reason is None


# ---- calls ----------------------------------------------------------------------------------------------------------


def state_of(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def assert_unchanged(before, model, optimizer):
    weights, states = state_of(model, optimizer)
    for name, value in before[0].items():
        assert_same_bits(weights[name], value, name)
    assert states.keys() == before[1].keys()
    for i, state in before[1].items():
        for name, value in state.items():
            assert_same_bits(states[i][name], value, name)


LABELS = torch.tensor([0, 2, 1])
BAD_CALLS = {
    "a list": (nn.CrossEntropyLoss(), [1.0], LABELS, TypeError, "expected input to be a Tensor, got list"),
    "no target": (nn.CrossEntropyLoss(), torch.ones(3, 6), None, TypeError, "expected target to be a Tensor"),
    "sizes": (nn.CrossEntropyLoss(), torch.ones(3, 7), LABELS, RuntimeError, r"expected an input \(\.\.\., 6\)"),
    "dtype": (nn.CrossEntropyLoss(), torch.ones(3, 6).double(), LABELS, RuntimeError, "expected input of Float"),
    "device": (nn.CrossEntropyLoss(), torch.ones(3, 6, device="meta"), LABELS, RuntimeError, "expected input"),
    "target's batch": (nn.CrossEntropyLoss(), torch.ones(4, 6), LABELS, RuntimeError, "one class index"),
    "target's dtype": (nn.CrossEntropyLoss(), torch.ones(3, 6), LABELS.int(), RuntimeError, "one class index"),
    "a class out of range": (
        nn.CrossEntropyLoss(),
        torch.ones(3, 6),
        torch.tensor([0, 3, 1]),
        IndexError,
        r"class indices in \[0, 3\)",
    ),
    "a target that would broadcast": (
        nn.MSELoss(),
        torch.ones(3, 6),
        torch.ones(3, 1),
        RuntimeError,
        r"target \[3, 3\]",
    ),
    "a probability above 1": (
        nn.BCELoss(),
        torch.ones(3, 6),
        torch.full((3, 3), 2.0),
        RuntimeError,
        "target between 0 and 1, got 2",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_call_that_fails_changes_nothing(case):
    loss, x, y, error, message = BAD_CALLS[case]
    model = mlp(nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters())
    step = TrainStep(model, loss, optimizer)
    for _ in range(2):  # before the first good step, and after it
        before = state_of(model, optimizer)
        with pytest.raises(error, match=message):
            step(x, y)
        assert_unchanged(before, model, optimizer)
        step(torch.rand(3, 6), LABELS if isinstance(loss, nn.CrossEntropyLoss) else torch.rand(3, 3))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (partial(torch.optim.Adam, differentiable=True), "without differentiable, got differentiable=True"),
        (partial(torch.optim.Adam, capturable=True), "without capturable, got capturable=True"),
        (lambda p, lr: torch.optim.SGD(p, lr=torch.tensor(lr)), "options are numbers, got a tensor as lr"),
    ],
)
def test_options_that_are_no_numbers_are_refused_or_left_to_the_loop(optimizer, message):
    with pytest.raises(ValueError, match=f"TrainStep: expected an optimiser .*{message}"):
        attempt(mlp(), optimizer=optimizer)
    assert message in attempt(mlp(), optimizer=optimizer, fallback=True).reason


def test_options_that_the_kernels_do_not_take_change_nothing():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    step(torch.ones(3, 6), LABELS)
    before = state_of(model, optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.raises(RuntimeError, match="TrainStep: expected options"):
        step(torch.ones(3, 6), LABELS)
    assert_unchanged(before, model, optimizer)


def test_a_parameter_replaced_or_resized_is_noticed():
    model = mlp()
    step = attempt(model, nn.CrossEntropyLoss())
    step(torch.ones(3, 6), LABELS)
    kept, model[0].weight = model[0].weight, nn.Parameter(torch.zeros(5, 6))
    with pytest.raises(RuntimeError, match=r"expected the parameter 0\.weight that it was made with, got another"):
        step(torch.ones(3, 6), LABELS)
    model[0].weight = kept
    step(torch.ones(3, 6), LABELS)
    model[2].bias.data = torch.zeros(7)
    with pytest.raises(RuntimeError, match=r"expected the parameter 2\.bias \[3\] .* got \[7\]"):
        step(torch.ones(3, 6), LABELS)


def test_state_of_another_size_is_noticed():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    step(torch.ones(3, 6), LABELS)
    optimizer.state[model[0].weight]["momentum_buffer"].data = torch.zeros(2)
    with pytest.raises(RuntimeError, match="TrainStep: expected options and state"):
        step(torch.ones(3, 6), LABELS)


def test_autocast_is_refused():
    step = attempt(mlp(), nn.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match="got autocast"), torch.autocast("cpu", torch.bfloat16):
        step(torch.ones(3, 6), LABELS)


def assert_a_step_does_as_the_loop(model, make_optimizer, loss, x, y):
    models = [model, copy.deepcopy(model)]
    optimizers = [make_optimizer(m.parameters()) for m in models]
    ours = TrainStep(models[0], loss, optimizers[0])(x, y)
    theirs = loss(models[1](x), y)
    theirs.backward()
    optimizers[1].step()
    assert_same_bits(ours, theirs.detach(), "loss")
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_same_bits(a.detach(), b.detach(), "parameter")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_spread_as_in_the_loop(bad):
    ns = pytorch_ext.nn
    model = ns.Sequential(ns.Linear(6, 5, activation="relu"), ns.Linear(5, 3))
    x = torch.randn(3, 6)
    x[1, 2] = bad
    assert_a_step_does_as_the_loop(model, pytorch_ext.optim.Adam, ns.CrossEntropyLoss(), x, LABELS)


def test_an_empty_batch_does_as_the_loop():
    ns = pytorch_ext.nn
    x, y = torch.zeros(0, 6), torch.zeros(0, 3)
    assert_a_step_does_as_the_loop(
        ns.Sequential(ns.Linear(6, 3)), partial(pytorch_ext.optim.SGD, lr=0.1), ns.MSELoss(reduction="sum"), x, y
    )


def test_strided_inputs_have_the_bits_of_contiguous_ones():
    x = torch.randn(6, 3).t()
    losses = []
    for input in (x, x.contiguous()):
        torch.manual_seed(2)
        losses.append(attempt(mlp(), nn.CrossEntropyLoss())(input, LABELS))
    assert_same_bits(*losses, "loss")


def test_calls_from_several_threads_take_turns():
    """All calls have one batch, so that their order does not matter, only their number."""
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    model = mlp()
    twin = copy.deepcopy(model)
    step, alone = (TrainStep(m, nn.CrossEntropyLoss(), torch.optim.Adam(m.parameters())) for m in (model, twin))

    def work(count):
        for _ in range(count):
            step(x, y)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [200] * 4))
    for _ in range(800):
        alone(x, y)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(ours.detach(), theirs.detach(), "parameter")


def test_without_the_native_library_it_is_refused(monkeypatch):
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "reason", "a test took it away")
    with pytest.raises(ValueError, match="TrainStep: expected the native library, got none: a test took it away"):
        attempt(mlp())
