"""Optimisers on the Triton path: one launch for all parameters, whatever their sizes and dtypes, and the CPU's bits."""

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_interpreter, needs_native

import pytorch_ext
from pytorch_ext import optim

pytestmark = [needs_native, needs_interpreter]
SHAPES = [(3, 4), (), (70000,), (0,), (1,), (5,)]


def parameters(*dtypes, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).to(dtype) for dtype in dtypes for shape in shapes]
    params = [torch.nn.Parameter(p) for p in params]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    return params


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1, "amsgrad": True, "maximize": True, "weight_decay": 0.01},
    "AdamW": {"lr": 0.1},
}
KERNEL = {"SGD": "sgd_kernel", "Adam": "adam_kernel", "AdamW": "adam_kernel"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_one_launch_for_each_dtype(launched, name):
    params = parameters(torch.float32, torch.float64, torch.bfloat16)
    optimizer = getattr(optim, name)(params, **OPTIMIZERS[name])
    with pytorch_ext.backend("triton"):
        optimizer.step()
        assert launched == {KERNEL[name]: 3}
        optimizer.step()
    assert launched == {KERNEL[name]: 6}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parameters_that_joined_later_or_lie_apart_have_the_cpu_s_bits(launched, name, dtype):
    def run(backend):
        params = parameters(dtype)
        whole = torch.nn.Parameter(params[2].detach()[1:].clone())  # begins between multiples of 16 bytes
        whole.data, whole.grad = params[2].detach().clone()[1:], params[2].grad[1:]
        late = params.pop(0)
        optimizer = getattr(optim, name)([*params, whole], **OPTIMIZERS[name])
        with pytorch_ext.backend(backend):
            optimizer.step()
            optimizer.param_groups[0]["params"].append(late)
            late.grad = late.grad.t().contiguous().t()  # another order in memory than the parameter's
            for _ in range(2):
                optimizer.step()
        states = [t for p in params for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)]
        return [p.detach() for p in (*params, late, whole)] + states

    for i, (a, b) in enumerate(zip(run("triton"), run("native"), strict=True)):
        assert_same_bits(a, b, f"result {i}")
    # The one that joined has taken fewer steps, or has an empty buffer: a launch of its own as long as that matters.
    assert launched == {KERNEL[name]: {"SGD": 1 + 2 + 1}.get(name, 1 + 2 + 2)}


def test_clipping_takes_the_same_launches_for_any_number_of_gradients(launched):
    per_call = []
    for shapes in ([(7,)], SHAPES[1:], SHAPES + [(3,)] * 100):
        norms, grads = [], []
        for backend in ("triton", "native"):
            launched.clear()
            params = parameters(torch.float32, shapes=shapes)
            with pytorch_ext.backend(backend):
                norms.append(optim.clip_grad_norm_(params, 0.5))
            grads.append([p.grad for p in params])
            per_call += [dict(launched)] if backend == "triton" else []
        assert_same_bits(*norms)
        for a, b in zip(*grads, strict=True):
            assert_same_bits(a, b)
    one_level = {
        "sum_segments_of_tensors_kernel": 1,
        "sum_segments_kernel": 1,
        "square_root_kernel": 1,
        "clip_kernel": 1,
    }
    two_levels = {**one_level, "sum_segments_of_tensors_kernel": 2}  # of more than 4096 elements
    assert per_call == [one_level, two_levels, two_levels]


def test_a_table_follows_tensors_that_move():
    params = parameters(torch.float32)
    with pytorch_ext.backend("triton"):
        optimizer = optim.SGD(params, lr=0.5)
        for _ in range(3):
            expected = [p.detach() - 0.5 * p.grad for p in params]
            optimizer.step()
            for p, e in zip(params, expected, strict=True):
                torch.testing.assert_close(p.detach(), e)
                p.data, p.grad = p.detach().clone(), p.grad.clone() * 2
