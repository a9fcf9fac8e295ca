"""The tensor core products' own source on an emulated device.

No GPU is needed: tests/emulator/hopper.h does what the manuals say of TMA, mbarrier and wgmma. That the manuals were
read rightly is what only silicon shows.
"""

import contextlib
import functools
import tempfile

import pytest
import torch
from accuracy import PRODUCT_TERMS, assert_accurate, assert_same_bits, unit_roundoff
from conftest import needs_native
from emulator import machines, ops
from emulator.arguments import ACTIVATIONS
from emulator.tensor_cores import (
    LATE_BOXES,
    LATE_PRODUCTS,
    LATE_STORES,
    LAYOUTS,
    TensorCores,
    compile_faulty_runner,
    compile_runner,
    operands,
)
from test_cuda_emulated import compiled_runner
from test_linear import product_magnitudes, stock

import pytorch_ext.functional as F
from pytorch_ext.ops.activation import ACTIVATIONS as COMPOSED

pytestmark = pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler")

# What is asynchronous happens at once, as late as it may, or as late as hurts the other one.
SCHEDULES = {
    "at once": (0, False),
    "boxes late": (LATE_BOXES, False),
    "boxes late, backwards": (LATE_BOXES, True),
    "products and stores late": (LATE_PRODUCTS | LATE_STORES, False),
    "all late, backwards": (LATE_BOXES | LATE_PRODUCTS | LATE_STORES, True),
}
# Of one multiprocessor: wide tiles; more steps along K than stages, so that stages are used again; tails everywhere.
WIDE, NARROW = (200, 248, 600), (200, 264, 456)


@functools.cache
def runner():
    with tempfile.TemporaryDirectory() as folder:
        return compile_runner(folder)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def tensor_cores(request):
    return TensorCores(runner(), *request.param, multiprocessors=1)


def assert_close(found, exact, magnitude, dtype):
    """The accuracy rule for a product that is rounded to 16 bits once."""
    allowed = PRODUCT_TERMS * unit_roundoff(torch.float32) * magnitude + unit_roundoff(dtype) * exact.abs()
    error = (found.double() - exact).abs()
    assert (error <= allowed + torch.finfo(dtype).tiny).all(), f"{(error - allowed).max()} above the bound"


def check(device, a, b, bias=None, activation="none", with_mask=False):
    c, z, mask = device.product(a, b, bias, activation, with_mask)
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    if z is not None:
        assert_close(z, exact, magnitude, a.dtype)
    y = COMPOSED[activation](exact)
    # The functions' slopes are at most 1.13 (gelu, silu), their own errors a few units of float32.
    assert_close(c, y, 1.2 * magnitude + y.abs(), a.dtype)
    if with_mask:
        bits = torch.stack([mask >> i & 1 for i in range(64)], 2).flatten(1)[:, : c.shape[1]]
        assert torch.equal(bits.bool(), c > 0) and 0 < bits.sum() < bits.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=str)
def test_products_in_every_layout(tensor_cores, layout, shape):
    a, b = operands(layout, *shape, torch.bfloat16)
    assert tensor_cores.plan(a, b)["wide"] == (shape == WIDE)
    check(tensor_cores, a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_float16(layout):
    for shape in (WIDE, NARROW):
        check(TensorCores(runner(), multiprocessors=1), *operands(layout, *shape, torch.float16))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation_before_the_one_rounding(tensor_cores, activation):
    a, b = operands("NT", 100, 200, 80, torch.bfloat16)
    check(tensor_cores, a * 0.2, b, torch.randn(200).bfloat16(), activation, with_mask=activation == "relu")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 64), (3, 136, 8), (129, 16, 72), (64, 1000, 16), (300, 8, 1000)])
def test_tails_and_tiles_without_a_single_row_of_a_consumer(tensor_cores, shape):
    check(tensor_cores, *operands("NT", *shape, torch.float16), torch.randn(shape[1]).half(), "relu")
    check(tensor_cores, *operands("NN", *shape, torch.float16))
    m, n, k = shape
    check(tensor_cores, *operands("TN", -(-m // 8) * 8, n, k, torch.float16))


def test_batches_and_operands_that_a_batch_shares(tensor_cores):
    for batch in [3, 1]:
        check(tensor_cores, *operands("NT", 70, 136, 72, torch.bfloat16, (batch,)))
    a, b = operands("NN", 70, 136, 72, torch.bfloat16, (3,))
    check(tensor_cores, a[0], b)
    check(tensor_cores, a, b[:1].expand(3, 72, 136))


def test_padded_rows_and_more_multiprocessors_than_tiles():
    a, b = operands("NN", 140, 272, 208, torch.bfloat16)
    for late, backwards in SCHEDULES.values():
        device = TensorCores(runner(), late, backwards, multiprocessors=132)
        check(device, a[:, :200], b[:200, 8:264])
        check(device, a[:, 8:200], b[:192, :264])


def test_nan_and_infinity_stay_in_their_rows_and_columns():
    a, b = operands("NT", 40, 64, 40, torch.bfloat16)
    a[3, 5], b[7, 9], a[39, 39] = float("nan"), float("inf"), float("-inf")
    c, _, mask = TensorCores(runner()).product(a, b, None, "relu", True)
    exact = torch.relu(a.float() @ b.float())
    torch.testing.assert_close(c.float(), exact, rtol=0.02, atol=0.05, equal_nan=True)
    bits = torch.stack([mask >> i & 1 for i in range(64)], 2).flatten(1)
    assert torch.equal(bits.bool(), (c > 0) | c.isnan())


@contextlib.contextmanager
def linear_of(device, machine):
    """Inside the `with` block linear of bfloat16 CPU tensors runs emulated kernels, as csrc/launch/linear.cpp has it.

    From the autograd node on everything is the native library's.
    """

    def linear_forward(x, weight, bias, activation):
        y, z, mask = device.product(x, weight.T, bias, activation, activation == "relu")
        return y, mask if z is None else z

    def linear_backward(grad, x, weight, saved, activation, mask):
        dz, dbias = ops.linear_gradient(machine, grad, saved, activation, mask[2])
        return device.product(dz, weight)[0], device.product(dz.T, x)[0], dbias

    library = torch.library.Library("pytorch_ext", "IMPL")
    try:
        for function in (linear_forward, linear_backward):
            library.impl(function.__name__, function, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


@pytest.fixture
def emulated_linear():
    machine = machines.Emulator(compiled_runner(torch.bfloat16), torch.bfloat16)
    with linear_of(TensorCores(runner(), LATE_BOXES), machine):
        yield machine


def make_linear(m=72, n=136, k=64):
    make = functools.partial(torch.randn, dtype=torch.float64)
    return [t.requires_grad_() for t in (make(m, k) / 8, make(n, k), make(n))]


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_s_gradients_through_the_autograd_node(emulated_linear, activation):
    inputs = make_linear()
    magnitudes = product_magnitudes(*inputs)
    ours = functools.partial(F.linear, activation=activation)
    assert_accurate(ours, stock(activation), inputs, torch.bfloat16, magnitudes, PRODUCT_TERMS)


@needs_native
def test_relu_s_mask_is_read_as_it_is_written(emulated_linear):
    """linear's backward from the mask has the bits of its backward from the output."""
    y, mask = torch.ops.pytorch_ext.linear_forward(*(t.detach().bfloat16() for t in make_linear()), "relu")
    assert mask.dtype == torch.int64 and (y == 0).any()
    grad = torch.randn(y.shape).bfloat16()
    from_output, from_mask = (ops.linear_gradient(emulated_linear, grad, saved, "relu") for saved in (y, mask))
    for theirs, ours in zip(from_output, from_mask, strict=True):
        assert_same_bits(ours, theirs)


@needs_native
def test_a_second_derivative_needs_more_than_relu_s_mask(emulated_linear):
    x, w, b = (t.detach().bfloat16().requires_grad_() for t in make_linear())
    grad = torch.randn(72, 136).bfloat16().requires_grad_()
    y = F.linear(x, w, b, activation="relu")
    plain = torch.autograd.grad(y, (x, w, b), grad.detach(), retain_graph=True)
    first = torch.autograd.grad(y, (x, w, b), grad, create_graph=True)
    for ours, expected in zip(first, plain, strict=True):
        assert_same_bits(ours.detach(), expected)
    second = torch.autograd.grad(first[0].square().sum(), (w, grad))
    w64, grad64 = w.detach().double().requires_grad_(), grad.detach().double().requires_grad_()
    dz = torch.where(y.detach() > 0, grad64, 0.0)
    expected = torch.autograd.grad((dz @ w64).square().sum(), (w64, grad64))
    for ours, exact in zip(second, expected, strict=True):
        assert (ours.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_what_the_launcher_cannot_do_is_an_error():
    with pytest.raises(RuntimeError, match="CUDA error 801"):  # not supported
        TensorCores(runner()).product(torch.ones(5, 9).bfloat16(), torch.ones(9, 8).bfloat16())


# ---- what the emulated device notices --------------------------------------------------------------------------------

FAULTS = {
    "a stage given back before its products are done": ("multiply_wait<1>();", "multiply_wait<2>();"),
    "products of a stage that is not full": ("barrier_wait(shared.full(place.stage), place.parity);", ""),
    "a stage filled before it is empty": ("barrier_wait(shared.empty(place.stage), place.parity ^ 1);", ""),
    "a stage that is never given back": ("if (k > 0) release(before);", ""),
    "results overwritten before they are stored": ("if (thread == 0) wait_for_stores<Tile::result_buffers - 1>();", ""),
    "results the copy engine may not see": ("copy_engine_fence();", ""),
}


@functools.cache
def faulty_runner():
    with tempfile.TemporaryDirectory() as folder:
        return compile_faulty_runner(folder, FAULTS.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulated_device_notices(fault):
    a, b = operands("NT", 200, 264, 600, torch.bfloat16)
    schedules = iter(SCHEDULES.values())
    with pytest.raises((AssertionError, RuntimeError), match="above the bound|deadlock|may not see|arrivals"):
        for late, backwards in schedules:
            check(TensorCores(faulty_runner(), late, backwards, 1, [*FAULTS].index(fault)), a, b)
