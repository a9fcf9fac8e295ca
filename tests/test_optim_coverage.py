"""Parameters, gradients and options that the one-call step does not meet every day: the same result as torch.optim."""

import pytest
import torch
from accuracy import assert_same_bits
from conftest import on_cpu_paths
from test_optim import ONE_EACH, give_gradients, parameters, tensors, train

from pytorch_ext import optim
from pytorch_ext.backends import choice

pytestmark = on_cpu_paths


@pytest.fixture
def steps_in_one_call(cpu_path, monkeypatch):
    """What every call of the path's steps answered: True, or None where the stock step had to take over."""
    answers, kernels = [], choice.kernels

    class Recorder:
        def __getattr__(self, name):
            def call(*args):
                answers.append(getattr(kernels, name)(*args))
                return answers[-1]

            return call

    monkeypatch.setattr(choice, "kernels", Recorder())
    return answers


def both(name, options, make, steps=3):
    """Parameters after some steps of ours and of torch's; ``make`` gives parameters with their gradients' source."""
    results = []
    for module in (optim, torch.optim):
        params, backward = make()
        optimizer = getattr(module, name)(params, **options)
        for step in range(steps):
            backward(params, step)
            optimizer.step()
        results.append([p.detach() for p in params])
    return results


def assert_close(pair):
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-4, atol=1e-5)


class MyParameter(torch.nn.Parameter):
    pass


def strided_parameters():
    return [torch.nn.Parameter(torch.arange(24.0).reshape(4, 6)[:, ::2]), *parameters()[:2]], give_gradients


def subclass_parameters():
    return [MyParameter(torch.arange(6.0)), *parameters()[:2]], give_gradients


def expanded_gradients():
    def backward(params, step):
        for p in params:
            p.grad = torch.tensor(0.5 + step).expand_as(p)

    return parameters(), backward


def aliased_parameters():
    x = torch.arange(6.0)
    return [torch.nn.Parameter(x[:4]), torch.nn.Parameter(x[2:])], give_gradients


def complex_parameters():
    return [torch.nn.Parameter(torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)))], (
        lambda params, step: [setattr(p, "grad", torch.full_like(p, 1 + 2j)) for p in params]
    )


UNCOVERED = [strided_parameters, subclass_parameters, aliased_parameters, complex_parameters]


@pytest.mark.parametrize("make", UNCOVERED, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_one_uncovered_parameter_takes_its_group_to_the_stock_step(steps_in_one_call, name, options, make):
    assert_close(both(name, options, make))
    assert steps_in_one_call and not any(steps_in_one_call)


def channels_last():
    params = [torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)), *parameters()[:2]]
    return params, give_gradients


def mixed_dtypes():
    return [p for dtype in (torch.float32, torch.bfloat16, torch.float64) for p in parameters(dtype)], give_gradients


def frozen():
    params = parameters()
    params[0].requires_grad_(False)

    def backward(params, step):
        loss = sum((p * p).sum() for p in params[2:])
        loss.backward()

    return params, backward


def transposed_gradients():
    def backward(params, step):
        give_gradients(params, step)
        params[0].grad = params[0].grad.t().contiguous().t()

    return parameters(), backward


def graph_gradients():
    def backward(params, step):
        grads = torch.autograd.grad(sum((p**3).sum() for p in params), params, create_graph=True)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad

    return parameters(), backward


COVERED = [channels_last, mixed_dtypes, frozen, transposed_gradients, expanded_gradients, graph_gradients]


@pytest.mark.parametrize("make", COVERED, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_unusual_tensors_are_covered(steps_in_one_call, name, options, make):
    torch.manual_seed(1)
    params, _ = make()

    def seeded():
        torch.manual_seed(1)
        return make()

    pair = both(name, options, seeded)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if params[-1].dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert steps_in_one_call and all(steps_in_one_call)


REQUESTS = [
    {"foreach": True},
    {"fused": True},
    {"differentiable": True},
    {"lr": torch.tensor(0.01)},
    {"weight_decay": torch.tensor(0.1)},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_requests_for_another_implementation_take_it(steps_in_one_call, name, request_):
    def make():
        return parameters(), give_gradients

    if "differentiable" in request_:  # leaves cannot be changed in place there
        return_value = [p.detach().clone() for p in parameters()]
        ours, stock = (
            [torch.nn.Parameter(p) for p in return_value],
            [torch.nn.Parameter(p.clone()) for p in return_value],
        )
        for cls, params in ((getattr(optim, name), ours), (getattr(torch.optim, name), stock)):
            copies = [p.clone() for p in params]
            give_gradients([c.retain_grad() or c for c in copies])
            optimizer = cls(params, **request_)
            optimizer.param_groups[0]["params"] = copies
            optimizer.step()
            assert all(c.requires_grad for c in copies)
    else:
        ours, stock = both(name, request_, make)
        for a, b in zip(ours, stock, strict=True):
            assert_same_bits(a, b)
    assert steps_in_one_call and not any(steps_in_one_call)


def test_sparse_gradients_are_stepped_or_refused_as_in_torch():
    def backward(params, step):
        params[0].grad = torch.sparse_coo_tensor([[0, 3]], torch.ones(2, 4), (6, 4), check_invariants=True)

    def make():
        return [torch.nn.Parameter(torch.arange(24.0).reshape(6, 4))], backward

    assert_close(both("SGD", {"lr": 0.1}, make))
    params, _ = make()
    dense = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.Adam([dense, *params])
    backward(params, 0)
    dense.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(3)) and torch.equal(params[0], make()[0][0])


@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_every_group_has_its_own_options_and_may_come_late(name, options):
    def make():
        return parameters(), give_gradients

    results = []
    for module in (optim, torch.optim):
        params, _ = make()
        optimizer = getattr(module, name)(params[:2], **options)
        train(optimizer, [0])
        optimizer.add_param_group({"params": params[2:], "lr": 1e-3, "weight_decay": 0.1})
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "foreach": True})
        train(optimizer, [1, 2])
        results.append([p for group in optimizer.param_groups for p in group["params"]])
    assert_close(results)
    assert [g["lr"] for g in optimizer.param_groups] == [options["lr"], 1e-3, options["lr"]]


@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_parameters_without_gradient_are_left_alone(name, options):
    params = parameters()
    optimizer = getattr(optim, name)(params, **options)
    optimizer.step()
    give_gradients(params[1:])
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before) and params[0] not in optimizer.state


@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_a_graph_saved_before_the_step_complains(name, options):
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer = getattr(optim, name)([p], **options)
    versions = p._version
    optimizer.step()
    assert p._version > versions
    assert all(t._version > 0 for t in optimizer.state[p].values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_a_compiled_step_gives_torch_s_numbers(name, options):
    torch._dynamo.reset()
    ours, stock = parameters(), parameters()
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(stock, **options)
    step = torch.compile(a.step, backend="aot_eager")
    for i in range(3):
        give_gradients(ours, i)
        step()
    train(b, range(3))
    assert_close([ours, stock])


def test_double_steps_are_counted_where_the_default_dtype_is_double():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        params = parameters()
        optimizer, stock = optim.Adam(params), torch.optim.Adam(parameters())
        train(optimizer, range(2))
        train(stock, range(2))
    finally:
        torch.set_default_dtype(before)
    step = optimizer.state[params[0]]["step"]
    assert step.dtype == torch.float64 == next(iter(stock.state.values()))["step"].dtype and step == 2


@pytest.mark.parametrize(("name", "options"), ONE_EACH, ids=str)
def test_flushing_to_zero_by_the_caller_does_not_reach_the_kernels(name, options):
    subnormal, with_subnormal_squares = torch.full((9,), 3e-39), torch.full((9,), 2e-20)

    def run():
        params = [torch.nn.Parameter(subnormal.clone())]
        optimizer = getattr(optim, name)(params, **options)
        params[0].grad = subnormal.clone()
        optimizer.step()
        params[0].grad = with_subnormal_squares.clone()
        return [*tensors(params, optimizer), optim.clip_grad_norm_(params, 1e-20), params[0].grad]

    expected = run()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush to zero")
    try:
        flushed = run()
    finally:
        torch.set_flush_denormal(False)
    for a, b in zip(flushed, expected, strict=True):
        assert_same_bits(a, b)
