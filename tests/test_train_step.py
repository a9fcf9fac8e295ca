"""TrainStep: the bits of the loop over this package's layers, the contract of the objects it is given, and refusals."""

import copy

import golden
import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_native
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pytorch_ext
from pytorch_ext import TrainStep, functional, optim

ns = pytorch_ext.nn
pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


class Network(pytorch_ext.nn.Module):
    """Named layers, functions and methods instead of a Sequential."""

    def __init__(self):
        super().__init__()
        self.flatten, self.first = pytorch_ext.nn.Flatten(), pytorch_ext.nn.Linear(12, 9)
        self.second, self.last = pytorch_ext.nn.Linear(9, 7), pytorch_ext.nn.Linear(7, 4)

    def forward(self, x):
        x = functional.relu(self.first(self.flatten(x)))
        x = functional.sigmoid(self.second(x))
        return functional.log_softmax(self.last(x.view(x.size(0), -1)), dim=1)


def mlp(activation="ReLU", *after, sizes=(12, 9, 4)):
    return ns.Sequential(ns.Linear(*sizes[:2]), getattr(ns, activation)(), ns.Linear(*sizes[1:]), *after)


def adam(model, **options):
    return optim.Adam(model.parameters(), **{"lr": 1e-2, **options})


def sgd(model, **options):
    return optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def adamw(model, **options):
    return optim.AdamW(model.parameters(), **{"lr": 1e-2, **options})


def two_groups(model):
    first, *rest = model.parameters()
    return optim.SGD([{"params": [first], "lr": 0.5, "momentum": 0.9}, {"params": rest}], lr=0.01)


def classes(n, generator):
    return torch.randint(4, (n,), generator=generator)


def values(n, generator):
    return torch.rand(n, 4, generator=generator)


CASES = {  # model, loss, target, optimiser, options of TrainStep
    "relu, cross entropy, Adam": (mlp, ns.CrossEntropyLoss(), classes, adam, {}),
    "tanh, MSE, SGD": (lambda: mlp("Tanh"), ns.MSELoss(), values, sgd, {}),
    "sigmoid, sum of squares, nesterov": (
        lambda: mlp("Sigmoid"),
        ns.MSELoss(reduction="sum"),
        values,
        lambda m: sgd(m, momentum=0.9, nesterov=True, weight_decay=1e-3),
        {},
    ),
    "gelu, BCE with logits, AdamW": (lambda: mlp("GELU"), ns.BCEWithLogitsLoss(), values, adamw, {}),
    "silu, BCE, amsgrad": (
        lambda: mlp("SiLU", ns.Sigmoid()),
        ns.BCELoss(),
        values,
        lambda m: adam(m, amsgrad=True, weight_decay=1e-2),
        {},
    ),
    "log_softmax, NLL, dampening": (
        lambda: mlp("ReLU", ns.LogSoftmax(dim=1)),
        ns.NLLLoss(ignore_index=2),
        classes,
        lambda m: sgd(m, momentum=0.5, dampening=0.25, maximize=True),
        {},
    ),
    "softmax, MSE": (lambda: mlp("ReLU", ns.Softmax(dim=-1)), ns.MSELoss(), values, sgd, {}),
    "dropout": (lambda: mlp("ReLU", ns.Dropout(0.5)), ns.CrossEntropyLoss(), classes, sgd, {}),
    "smoothing and weights": (
        mlp,
        ns.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.25]), label_smoothing=0.1),
        classes,
        sgd,
        {},
    ),
    "class probabilities": (mlp, ns.CrossEntropyLoss(), lambda n, g: values(n, g).softmax(1), sgd, {}),
    "a forward of its own": (Network, ns.NLLLoss(), classes, adam, {}),
    "parameter groups": (mlp, ns.CrossEntropyLoss(), classes, two_groups, {}),
    "clipped": (mlp, ns.CrossEntropyLoss(), classes, adam, {"max_norm": 0.05}),
    "three batches a step": (mlp, ns.CrossEntropyLoss(), classes, adam, {"accumulate": 3}),
    "three batches a step, clipped": (mlp, ns.MSELoss(), values, sgd, {"accumulate": 3, "max_norm": 0.1}),
}


def batches_of(shape, target, count=7):
    """Batches of several sizes; the generator is theirs, so that dropout's draws are the training's."""
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        n = (5, 5, 8, 1, 5, 8, 3)[i % 7]
        yield torch.randn(n, *shape, generator=generator), target(n, generator)


def loop_step(model, loss_function, optimizer, max_norm=None, accumulate=1):
    """The loop that TrainStep's docstring shows."""
    done = 0

    def step(input, target):
        nonlocal done
        loss = loss_function(model(input), target)
        loss.backward()
        done += 1
        if done % accumulate == 0:
            if max_norm is not None:
                optim.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


def tensors_of(model, optimizer):
    """Every parameter and every tensor of the optimiser's state, by name."""
    found = dict(model.state_dict())
    for i, state in optimizer.state_dict()["state"].items():
        found |= {f"{i}.{key}": value for key, value in state.items() if torch.is_tensor(value)}
    return found


def trained(make_step, case, dtype=torch.float32, shape=(12,), count=7, place=lambda t: t):
    """Losses, parameters and state after `count` steps; place(tensor) is the tensor on the device of all."""
    model_of, loss, target, optimizer_of, options = CASES[case]
    torch.manual_seed(7)
    model, loss = model_of().to(dtype)._apply(place), copy.deepcopy(loss).to(dtype)._apply(place)
    optimizer = optimizer_of(model)
    step = make_step(model, loss, optimizer, **options)
    found = {}
    for i, (x, y) in enumerate(batches_of(shape, target, count)):
        found[f"loss {i}"] = step(place(x.to(dtype)), place(y if y.dtype == torch.int64 else y.to(dtype)))
    return found | tensors_of(model, optimizer)


def assert_all_same_bits(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert_same_bits(ours[name].detach(), value.detach(), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_it_has_the_bits_of_the_loop(case, dtype):
    assert_all_same_bits(trained(TrainStep, case, dtype), trained(loop_step, case, dtype))


@pytest.mark.parametrize("case", ["relu, cross entropy, Adam", "dropout", "three batches a step, clipped"])
def test_it_has_the_same_bits_on_every_instruction_set_and_thread_count(case, each_cpu):
    expected = trained(loop_step, case)
    for name, found in each_cpu(lambda: trained(TrainStep, case)).items():
        for key, value in expected.items():
            assert_same_bits(found[key], value, f"{key} on {name}")


def test_it_takes_inputs_of_more_dimensions():
    shape = (3, 4)
    ours = trained(TrainStep, "a forward of its own", shape=shape)
    assert_all_same_bits(ours, trained(loop_step, "a forward of its own", shape=shape))


@pytest.mark.parametrize("name", golden.HASHES)
def test_it_reproduces_the_recorded_trainings(name):
    hashes = {n: value for n, value in golden.HASHES[name].items() if n <= 20}
    assert golden.train_by_step(name, hashes) == hashes


def test_stock_modules_and_stock_optimisers_give_the_same_bits():
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    twin = mlp()
    twin.load_state_dict(model.state_dict())
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-2, fused=True))
    loop = loop_step(twin, ns.CrossEntropyLoss(), adam(twin))
    for x, y in batches_of((12,), classes):
        assert_same_bits(step(x, y), loop(x, y), "loss")
    assert_all_same_bits(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("case", ["relu, cross entropy, Adam", "a forward of its own"])
def test_a_converted_model_gives_the_same_bits(case):
    def converted(model, *rest, **options):
        pytorch_ext.convert(model)
        return TrainStep(model, *rest, **options)

    assert_all_same_bits(trained(converted, case), trained(loop_step, case))


# ---- the objects stay the user's ------------------------------------------------------------------------------------


def pair():
    """Two equal models with optimisers, one with a TrainStep and one with the loop."""
    torch.manual_seed(11)
    model = mlp("ReLU", ns.Dropout(0.25))
    twin = copy.deepcopy(model)
    optimizer, other = sgd(model, momentum=0.9), sgd(twin, momentum=0.9)
    loss = ns.CrossEntropyLoss()
    return (model, optimizer, TrainStep(model, loss, optimizer)), (twin, other, loop_step(twin, loss, other))


def in_turn(ours, theirs, between):
    """Steps of both, with `between(step number, model, optimizer)` before each; then both must be equal."""
    for model, optimizer, step in (ours, theirs):
        torch.manual_seed(5)
        for i, (x, y) in enumerate(batches_of((12,), classes)):
            between(i, model, optimizer)
            step(x, y)
    assert_all_same_bits(tensors_of(*ours[:2]), tensors_of(*theirs[:2]))


def test_a_scheduler_changes_the_learning_rate(recwarn):
    schedulers = {}

    def between(i, model, optimizer):
        if i == 0:
            schedulers[optimizer] = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
        else:
            schedulers[optimizer].step()

    in_turn(*pair(), between)
    assert not recwarn.list


def test_evaluation_mode_switches_dropout_off_and_on():
    in_turn(*pair(), lambda i, model, optimizer: model.train(i % 3 != 1))


def test_parameters_may_be_frozen_and_thawed():
    in_turn(*pair(), lambda i, model, optimizer: model[0].requires_grad_(i not in (2, 3)))


def test_weights_may_be_changed_between_steps():
    def between(i, model, optimizer):
        if i == 3:
            with torch.no_grad():
                model[0].weight.mul_(0.5)
                model[2].bias.data = torch.ones(4)

    in_turn(*pair(), between)


def test_options_may_be_changed_between_steps():
    def between(i, model, optimizer):
        optimizer.param_groups[0].update(weight_decay=0.01 * i, nesterov=i > 2)

    in_turn(*pair(), between)


def test_a_checkpoint_may_be_loaded_between_steps():
    saved = {}

    def between(i, model, optimizer):
        if i == 2:
            saved[model] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if i == 5:
            model.load_state_dict(saved[model][0])
            optimizer.load_state_dict(saved[model][1])

    in_turn(*pair(), between)


def test_the_loop_may_take_over_and_hand_back():
    (model, optimizer, step), theirs = pair()
    loop = loop_step(model, ns.CrossEntropyLoss(), optimizer)
    calls = iter(range(100))
    mixed = lambda x, y: (loop if next(calls) in (2, 3, 5) else step)(x, y)  # noqa: E731
    in_turn((model, optimizer, mixed), theirs, lambda i, model, optimizer: None)


def test_gradients_of_the_user_are_left_alone():
    (model, _, step), _ = pair()
    mine = torch.full_like(model[0].weight, 7.0)
    model[0].weight.grad = mine
    step(torch.randn(4, 12), torch.randint(4, (4,)))
    assert model[0].weight.grad is mine and mine.eq(7).all() and model[2].weight.grad is None


def test_step_hooks_run_once_an_update():
    (model, optimizer, _), _ = pair()
    step = TrainStep(model, ns.CrossEntropyLoss(), optimizer, accumulate=2)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(("before", model[0].weight.detach().clone())))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(("after", model[0].weight.detach().clone())))
    for x, y in list(batches_of((12,), classes))[:4]:
        step(x, y)
    assert [name for name, _ in seen] == ["before", "after"] * 2
    assert not torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[1][1], seen[2][1])


# ---- a whole loader -------------------------------------------------------------------------------------------------


def loaders(shuffle, drop_last):
    data = TensorDataset(torch.randn(45, 12), torch.randint(4, (45,)))
    yield DataLoader(data, batch_size=8, shuffle=shuffle, drop_last=drop_last)
    yield list(DataLoader(data, batch_size=8, shuffle=False, drop_last=drop_last))  # batches, not a loader


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_run_trains_as_a_loop_over_the_loader(shuffle, drop_last):
    ours, theirs = pair()
    for loader in loaders(shuffle, drop_last):
        torch.manual_seed(21)
        means = ours[2].run(loader, epochs=3)
        after = torch.random.get_rng_state()
        torch.manual_seed(21)
        expected = [torch.stack([theirs[2](x, y) for x, y in loader]) for _ in range(3)]
        assert means == pytest.approx([losses.double().mean().item() for losses in expected], rel=1e-12)
        assert torch.equal(torch.random.get_rng_state(), after)
        assert_all_same_bits(tensors_of(*ours[:2]), tensors_of(*theirs[:2]))


def test_run_shows_its_progress(capsys):
    (_, _, step), _ = pair()
    step.run(next(loaders(True, False)), epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "6/6" in shown and "loss " in shown


def test_run_refuses_an_empty_loader():
    (_, _, step), _ = pair()
    with pytest.raises(ValueError, match="TrainStep: expected a loader with batches, got none"):
        step.run([])
