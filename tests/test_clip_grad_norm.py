"""clip_grad_norm_: bits of the specification, the behaviour of torch.nn.utils.clip_grad_norm_."""

import numpy as np
import pytest
import torch
from accuracy import assert_all_same_bits, assert_same_bits
from conftest import on_cpu_paths
from spec import optimizers as spec
from test_optim import SHAPES, give_gradients, parameters

from pytorch_ext import native, optim

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
stock_clip = torch.nn.utils.clip_grad_norm_


def with_gradients(dtype=torch.float32, shapes=SHAPES):
    params = parameters(dtype, shapes)
    give_gradients(params)
    return params


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, float("inf")])
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, max_norm):
    def run():
        params = with_gradients()
        total = optim.clip_grad_norm_(params, max_norm)
        return [total, *(p.grad for p in params)]

    results = each_cpu(run)
    assert_all_same_bits(results)
    grads = [p.grad.numpy() for p in with_gradients()]
    norm = spec.clip_grad_norm(grads, max_norm)
    for ours, wanted in zip(next(iter(results.values())), [np.array(norm), *grads], strict=True):
        assert_same_bits(ours, torch.from_numpy(wanted))


def compare(params_of, *args, **options):
    ours, stock = params_of(), params_of()
    total, expected = optim.clip_grad_norm_(ours, *args, **options), stock_clip(stock, *args, **options)
    assert total.shape == () and total.dtype == expected.dtype
    half = expected.dtype in (torch.bfloat16, torch.float16)
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if half else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(total, expected, equal_nan=True, **tolerance)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True, **tolerance)


@on_cpu_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("max_norm", [0.5, 1000.0, float("inf"), -1.0, torch.tensor(2.0)], ids=str)
def test_agrees_with_torch(dtype, max_norm):
    compare(lambda: with_gradients(dtype), max_norm)


@on_cpu_paths
@pytest.mark.parametrize("norm_type", [1, 2, "inf", float("inf"), 0.5])
def test_every_norm_type(norm_type):
    compare(lambda: with_gradients(shapes=[(3, 4), (), (70,)]), 0.7, norm_type)


@on_cpu_paths
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20, 1e-30])
def test_special_values(value, foreach):
    def params_of():
        params = with_gradients(shapes=[(3, 4), (70,)])
        params[0].grad[1, 2] = value
        return params

    compare(params_of, 0.5, foreach=foreach)


@on_cpu_paths
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_error_if_nonfinite_leaves_gradients_as_they_were(value):
    params = with_gradients()
    params[0].grad[0, 0] = value
    before = [p.grad.clone() for p in params]
    versions = [p.grad._version for p in params]
    with pytest.raises(RuntimeError, match="clip_grad_norm_: expected gradients of finite norm, got (nan|inf)"):
        optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    for p, grad in zip(params, before, strict=True):
        assert_same_bits(p.grad, grad)
    assert versions == [p.grad._version for p in params]
    compare(with_gradients, 1.0, error_if_nonfinite=True)


@on_cpu_paths
def test_parameters_may_come_in_any_form():
    expected = stock_clip(with_gradients(), 1.0)
    for form in (iter, tuple, lambda params: (p for p in params)):
        torch.testing.assert_close(optim.clip_grad_norm_(form(with_gradients()), 1.0), expected)
    one = with_gradients()[0]
    torch.testing.assert_close(optim.clip_grad_norm_(one, 1.0), stock_clip(with_gradients()[0], 1.0))
    assert optim.clip_grad_norm_([], 1.0) == 0 and optim.clip_grad_norm_([torch.nn.Parameter(torch.ones(2))], 1.0) == 0
    with pytest.warns(UserWarning, match="empty generator"):
        optim.clip_grad_norm_((p for p in ()), 1.0)


def transposed():
    params = with_gradients()
    params[0].grad = params[0].grad.t().contiguous().t()
    return params


def shared():
    params = with_gradients(shapes=[(4,), (4,)])
    params[1].grad = params[0].grad
    return params


def mixed():
    return with_gradients() + with_gradients(torch.float64)


@on_cpu_paths
@pytest.mark.parametrize("params_of", [transposed, shared, mixed], ids=lambda f: f.__name__)
def test_unusual_gradients(params_of):
    compare(params_of, 0.5)


@on_cpu_paths
def test_version_counters_are_bumped():
    params = with_gradients()
    versions = [p.grad._version for p in params]
    optim.clip_grad_norm_(params, 0.5)
    assert all(p.grad._version > v for p, v in zip(params, versions, strict=True))
