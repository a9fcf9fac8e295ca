"""PyTorch's own generated samples (OpInfo): every function gives what torch gives, forward and two derivatives."""

import pytest
import torch
from agreement import assert_agree, error_of
from conftest import on_cpu_paths_slowly
from torch.utils._pytree import tree_flatten, tree_unflatten

import pytorch_ext.functional as F
from pytorch_ext import calls

op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db  # needs expecttest
pytestmark = on_cpu_paths_slowly


def without_options(*args, options=None, **kwargs):
    return torch.nn.functional.linear_cross_entropy(*args, **kwargs)


# This package's function behind the samples of each of torch's. Those of special cases of matmul are called as that.
OURS = {f"nn.functional.{name}": getattr(F, name) for name in F.__all__}
OURS |= {name: F.matmul for name in ("matmul", "mm", "mv", "dot")}
OURS |= {"__rmatmul__": lambda x, y: F.matmul(y, x)}
OURS |= {name: getattr(F, name) for name in ("sigmoid", "tanh")}
OURS |= {name: getattr(calls, name) for name in ("softmax", "log_softmax", "addmm", "bmm")}
# With options torch takes a path of its own, which has no second derivative and warns of what it does not cover.
STOCK = {"nn.functional.linear_cross_entropy": without_options}
# Samples with random values; attention's others are in its own file, as stock's second derivative needs another kernel.
ELSEWHERE = {"nn.functional.dropout", "nn.functional.scaled_dot_product_attention"}
OPS = [
    op for op in op_db if op.name in OURS and op.name not in ELSEWHERE and op.variant_test_name != "triton_optimized"
]


def named(op):
    return op.formatted_name


CASES = [
    pytest.param(op, dtype, id=f"{named(op)}-{str(dtype)[6:]}") for op in OPS for dtype in sorted(op.dtypes, key=str)
]


def orders_of(op, dtype):
    """How often the function can be differentiated."""
    if not op.supports_autograd or dtype not in op.backward_dtypes or not (dtype.is_floating_point or dtype.is_complex):
        return 0
    return 2 if op.supports_gradgrad else 1


def compare(op, calls_of_samples, orders):
    """Every call, ``(input, *args), kwargs``, agrees; what does not is listed."""
    failed, count = [], 0
    for name, args, kwargs in calls_of_samples:
        count += 1
        try:
            assert_agree(OURS[op.name], STOCK.get(op.name, op.op), *args, orders=orders, **kwargs)
        except Exception as error:
            failed.append(f"{name}\n    {type(error).__name__}: {error}")
    assert count
    assert not failed, f"{len(failed)} of {count} samples differ\n" + "\n".join(failed)


def described(samples):
    for i, sample in enumerate(samples):
        yield f"sample {i}: {sample.summary()}", (sample.input, *sample.args), sample.kwargs


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_samples_agree(op, dtype):
    orders = orders_of(op, dtype)
    compare(op, described(op.sample_inputs("cpu", dtype, requires_grad=orders > 0)), orders)


@pytest.mark.parametrize("op", [op for op in OPS if op.reference_inputs_func and torch.float32 in op.dtypes], ids=named)
def test_reference_inputs_agree(op):
    compare(op, described(op.reference_inputs("cpu", torch.float32, requires_grad=True)), 1)


def each_alone(samples):
    """Every sample with the gradient of one of its tensors wanted, and with that of none."""
    for name, args, kwargs in described(samples):
        leaves, tree = tree_flatten((args, kwargs))
        wanted = [i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.requires_grad]
        for chosen in (*wanted, None) if len(wanted) > 1 else (None,):
            alone = [t.detach().requires_grad_(i == chosen) if i in wanted else t for i, t in enumerate(leaves)]
            yield f"{name}, gradient of argument {chosen}", *tree_unflatten(alone, tree)


@pytest.mark.parametrize("op", OPS, ids=named)
def test_each_argument_alone_may_require_a_gradient(op):
    dtype = torch.float32 if torch.float32 in op.dtypes else torch.complex64
    compare(op, each_alone(op.sample_inputs("cpu", dtype, requires_grad=True)), orders_of(op, dtype))


@pytest.mark.parametrize("op", [op for op in OPS if op.error_inputs_func and op.name != "dot"], ids=named)
def test_errors_are_of_the_same_class(op):
    for wrong in op.error_inputs("cpu"):
        sample = wrong.sample_input
        call = (sample.input, *sample.args)
        expected = error_of(op.op, *call, **sample.kwargs)
        assert error_of(OURS[op.name], *call, **sample.kwargs) is expected is not None, sample.summary()
