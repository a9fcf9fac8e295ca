"""PyTorch's own generated module samples (ModuleInfo): every module gives what torch's gives, parameters included."""

import inspect
import re

import pytest
import torch
from agreement import assert_agree, error_of
from conftest import on_cpu_paths_slowly

import pytorch_ext.nn as nn

generated = pytest.importorskip("torch.testing._internal.common_modules")  # needs expecttest
pytestmark = on_cpu_paths_slowly
ModuleErrorEnum, module_db = generated.ModuleErrorEnum, generated.module_db
MODULES = [info for info in module_db if info.module_cls.__name__ in nn.__all__]
# Of its gradients the small ones are differences of large ones: torch's own are up to 1900 roundings off.
ROUNDINGS = {torch.nn.MultiheadAttention: 512}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def modes_of(info):
    return (True, False) if info.train_and_eval_differ else (True,)


def samples_of(info, dtype, requires_grad, training):
    arguments = {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad, "training": training}
    return info.module_inputs_func(info, **arguments)


def made(cls, sample, training, dtype):
    torch.manual_seed(0)
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    return cls(*args, **kwargs).to(dtype).train(training)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.formatted_name)
def test_samples_agree(info, dtype):
    failed, count = [], 0
    for training in modes_of(info):
        for i, sample in enumerate(samples_of(info, dtype, requires_grad=True, training=training)):
            count += 1
            try:
                compare(info, sample, training, dtype)
            except Exception as error:
                failed.append(f"sample {i}, training {training}, {sample.desc}: {type(error).__name__}: {error}")
    assert count
    assert not failed, f"{len(failed)} of {count} samples differ\n" + "\n".join(failed)


def compare(info, sample, training, dtype):
    stock = made(info.module_cls, sample, training, dtype)
    ours = made(getattr(nn, info.module_cls.__name__), sample, training, dtype)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), stock.state_dict().values(), strict=True))
    assert re.sub(r"\s", "", str(ours)) == re.sub(r"\s", "", str(stock))
    if hasattr(stock, "options"):  # linear_cross_entropy with them has no second derivative, and warns
        stock.options = None

    def call(module):
        return lambda state, *args, **kwargs: torch.func.functional_call(module, state, args, kwargs)

    state = {name: t.detach().requires_grad_(t.requires_grad) for name, t in stock.state_dict(keep_vars=True).items()}
    orders = 2 if info.supports_gradgrad and (dtype.itemsize > 2 or info.module_cls not in ROUNDINGS) else 1
    roundings = ROUNDINGS.get(info.module_cls, 4)
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    assert_agree(call(ours), call(stock), state, *args, orders=orders, roundings=roundings, **kwargs)


@pytest.mark.parametrize(
    "info", [info for info in MODULES if info.module_error_inputs_func], ids=lambda info: info.formatted_name
)
def test_errors_are_of_the_same_class(info):
    arguments = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": True}
    for wrong in info.module_error_inputs_func(info, **arguments):
        sample = wrong.module_error_input

        def call(cls, sample=sample, on=wrong.error_on):
            module = cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            if on is ModuleErrorEnum.FORWARD_ERROR:
                module(*sample.forward_input.args, **sample.forward_input.kwargs)

        ours = getattr(nn, info.module_cls.__name__)
        assert error_of(call, ours) is error_of(call, info.module_cls) is not None


def test_signatures_are_torchs():
    for name in (name for name in nn.__all__ if hasattr(torch.nn, name) and name != "functional"):
        theirs = inspect.signature(getattr(torch.nn, name).__init__).parameters
        found = inspect.signature(getattr(nn, name).__init__).parameters
        assert [(p.name, p.kind, p.default) for p in found.values() if p.name in theirs] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ], name
