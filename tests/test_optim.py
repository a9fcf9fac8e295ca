"""SGD, Adam, AdamW and clip_grad_norm_: bits of the specification, the numbers and the behaviour of torch.optim."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from accuracy import assert_all_same_bits, assert_same_bits
from conftest import on_cpu_paths
from spec import optimizers as spec
from torch.optim.optimizer import register_optimizer_step_post_hook

import pytorch_ext
from pytorch_ext import native, optim

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")

SHAPES = [(5, 7), (), (4097,), (3, 1, 2), (0, 4), (20, 1000)]
SGD = [
    {"lr": 0.1, "momentum": m, "dampening": d, "nesterov": n, "weight_decay": w, "maximize": x}
    for m, d, n, w, x in itertools.product((0, 0.9), (0, 0.3), (False, True), (0, 0.05), (False, True))
    if (m or not (d or n)) and not (n and d)
]
ADAM = [
    {"lr": 3e-3, "betas": b, "weight_decay": w, "amsgrad": a, "maximize": m}
    for b, w, a, m in itertools.product(((0.9, 0.999), (0.0, 0.5)), (0, 0.05), (False, True), (False, True))
]
CASES = [("SGD", o) for o in SGD] + [("Adam", o) for o in ADAM] + [("AdamW", o) for o in ADAM]
ONE_EACH = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 1e-2, "amsgrad": True}),
    ("AdamW", {"lr": 1e-2}),
]


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [torch.nn.Parameter(t) for t in made]


def give_gradients(params, step=0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def trained(cls, options, steps, dtype=torch.float32, shapes=SHAPES):
    """(parameters, optimiser) after some steps on gradients that do not depend on the parameters."""
    params = parameters(dtype, shapes)
    optimizer = cls(params, **options)
    train(optimizer, range(steps))
    return params, optimizer


def train(optimizer, steps):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


def tensors(params, optimizer):
    states = [optimizer.state[p] for p in params if p in optimizer.state]
    return [p.detach().clone() for p in params] + [state[k].clone() for state in states for k in sorted(state)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, name, options):
    results = each_cpu(lambda: tensors(*trained(getattr(optim, name), options, 3)))
    assert_all_same_bits(results)
    params = parameters()
    arrays, states = [p.detach().numpy().copy() for p in params], [{} for _ in params]
    update = {"SGD": spec.sgd, "Adam": spec.adam, "AdamW": lambda *a, **o: spec.adam(*a, decoupled=True, **o)}[name]
    for step in range(3):
        give_gradients(params, step)
        for array, p, state in zip(arrays, params, states, strict=True):
            update(array, p.grad.numpy(), state, **options)
    expected = arrays + [np.array(state[k], np.float32) for state in states for k in sorted(state)]
    for ours, wanted in zip(next(iter(results.values())), expected, strict=True):
        assert_same_bits(ours, torch.from_numpy(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_fifty_steps_agree_with_torch_within_rounding(cpu_path, name, options, dtype):
    shapes, steps = [(5, 7), (), (130,)], 50 if cpu_path == "native" else 5
    ours, _ = trained(getattr(optim, name), options, steps, dtype, shapes)
    stock, _ = trained(getattr(torch.optim, name), options, steps, dtype, shapes)
    exact, reference = parameters(dtype, shapes), parameters(dtype, shapes)
    exact = [torch.nn.Parameter(p.detach().double()) for p in exact]
    optimizer = getattr(torch.optim, name)(exact, **options)
    for step in range(steps):
        give_gradients(reference, step)
        for p, r in zip(exact, reference, strict=True):
            p.grad = r.grad.double()
        optimizer.step()
    for a, b, c in zip(ours, stock, exact, strict=True):
        scale = max(1.0, c.abs().max().item())
        allowed = 2 * (b.double() - c).abs().max().item() + 16 * torch.finfo(dtype).eps * scale
        assert (a.double() - c).abs().max().item() <= allowed


@on_cpu_paths
@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_state_dict_is_torch_s(name, options):
    ours, stock = getattr(optim, name), getattr(torch.optim, name)
    params, optimizer = trained(ours, options, 3)
    theirs, their_optimizer = trained(stock, options, 3)
    saved, their_state = optimizer.state_dict(), their_optimizer.state_dict()
    assert saved.keys() == their_state.keys() and saved["param_groups"] == their_state["param_groups"]
    assert saved["state"].keys() == their_state["state"].keys()
    for i, state in saved["state"].items():
        assert {k: (v.dtype, v.shape) for k, v in state.items()} == {
            k: (v.dtype, v.shape) for k, v in their_state["state"][i].items()
        }
    # Ours into stock and back, and through pickle: the same bits as a training without the interruption.
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    through_stock = stock(resumed, **options)
    through_stock.load_state_dict(pickle.loads(pickle.dumps(saved)))
    again = ours(resumed, **options)
    again.load_state_dict(copy.deepcopy(through_stock.state_dict()))
    train(again, range(3, 6))
    train(optimizer, range(3, 6))
    for a, b in zip(tensors(resumed, again), tensors(params, optimizer), strict=True):
        assert_same_bits(a, b)
    # Stock's state goes on in ours.
    continued = ours(theirs, **options)
    continued.load_state_dict(their_state)
    train(continued, range(3, 6))
    for a, b in zip(theirs, params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_cpu_paths
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_copies_go_on_with_the_same_bits(name, options, copied):
    params, optimizer = trained(getattr(optim, name), options, 2)
    other_params, other = copied((params, optimizer))
    train(other, range(2, 4))
    train(optimizer, range(2, 4))
    for a, b in zip(tensors(params, optimizer), tensors(other_params, other), strict=True):
        assert_same_bits(a, b)


@on_cpu_paths
@pytest.mark.parametrize("scheduler", ["StepLR", "OneCycleLR"])
@pytest.mark.parametrize(("name", "options"), ONE_EACH[1:], ids=str)
def test_schedulers_change_rate_and_momentum(name, options, scheduler):
    def run(module):
        params = parameters()
        optimizer = getattr(module, name)(params, **options)
        schedule = {
            "StepLR": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 2),
            "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=10),
        }[scheduler]()
        for step in range(8):
            train(optimizer, [step])
            schedule.step()
        return params

    for a, b in zip(run(optim), run(torch.optim), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_cpu_paths
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=["native", "stock"])
def test_hooks_run_once_and_the_profile_has_its_label(options):
    params = parameters()
    optimizer, seen = optim.Adam(params, **options), []
    give_gradients(params)
    optimizer.step()
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o is optimizer, args, kwargs))),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("post", o is optimizer, args, kwargs))),
    ]
    optimizer.step()
    assert seen == [(name, True, (optimizer,), {}) for name in ("pre", "post")]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 2
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    labels = [event.name for event in profile.events() if event.name.startswith("Optimizer.")]
    assert labels == ["Optimizer.step#Adam.step", "Optimizer.zero_grad#Adam.zero_grad"]


@on_cpu_paths
def test_a_global_hook_runs_once():
    params, seen = parameters(), []
    optimizer = optim.SGD(params, lr=0.1)
    give_gradients(params)
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert seen == [1]


@on_cpu_paths
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=["native", "stock"])
def test_closure_is_called_once_with_gradients_enabled(options):
    params = parameters()
    optimizer, calls = optim.SGD(params, lr=0.1, **options), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    torch.testing.assert_close(loss, sum((p * p).sum() for p in parameters()))
    torch.testing.assert_close(params[0], parameters()[0] * 0.8)


@on_cpu_paths
def test_zero_grad_drops_or_clears():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1)
    give_gradients(params)
    kept = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.any() for p, g in zip(params, kept, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_constructor_errors_are_torch_s():
    for cls, options in [(optim.SGD, {"lr": -1}), (optim.Adam, {"betas": (1.0, 0.9)}), (optim.AdamW, {"eps": -1})]:
        with pytest.raises(ValueError) as ours:
            cls(parameters(), **options)
        with pytest.raises(ValueError) as stock:
            getattr(torch.optim, cls.__name__)(parameters(), **options)
        assert str(ours.value) == str(stock.value)


def test_stock_names_are_reexported():
    assert optim.RMSprop is torch.optim.RMSprop and optim.lr_scheduler is torch.optim.lr_scheduler
    assert issubclass(optim.AdamW, torch.optim.AdamW)
    with pytorch_ext.backend("stock"):
        a, _ = trained(optim.Adam, {}, 3)
    b, _ = trained(torch.optim.Adam, {}, 3)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
