"""Our own 16-bit products on a device with tensor cores, against float64.

They run where PYTORCH_EXT_TENSOR_CORES is 1 on a device of compute capability 9.0: `make gpu` does both.
"""

import os

import pytest
import torch
from accuracy import PRODUCT_TERMS, assert_accurate, assert_same_bits
from conftest import has_cuda
from test_linear import product_magnitudes, stock

import pytorch_ext.functional as F
from pytorch_ext.ops.linear import ACTIVATIONS

pytestmark = [
    pytest.mark.skipif(
        not has_cuda or torch.cuda.get_device_capability() != (9, 0), reason="there is no device with sm_90a's wgmma"
    ),
    pytest.mark.skipif(os.environ.get("PYTORCH_EXT_TENSOR_CORES") != "1", reason="PYTORCH_EXT_TENSOR_CORES is not 1"),
]

# Tiles are 128 x 128 or 128 x 256, the steps along K 64 wide.
SHAPES = [(1, 8, 8), (3, 136, 72), (128, 256, 64), (129, 264, 1000), (500, 1032, 456), (2048, 2048, 512), (64, 8, 8192)]
LOW_PRECISION = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def make(*shape, dtype=torch.float64):
    return torch.randn(shape, device="cuda", dtype=dtype)


def kernels_of(function):
    """Names of the kernels that a function launches."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


def runs_ours(function):
    return any("tensor_core_product_kernel" in name for name in kernels_of(function))


@LOW_PRECISION
@pytest.mark.parametrize("layout", ["NT", "NN", "TN"])
def test_products_in_every_layout_are_accurate(layout, dtype):
    for m, n, k in SHAPES:
        if layout[0] == "T":
            m = -(-m // 8) * 8  # rows of 16 bytes
        a = make(k, m).mT if layout[0] == "T" else make(m, k)
        b = make(n, k).mT if layout[1] == "T" else make(k, n)
        magnitudes = [a.to(dtype).double().abs() @ b.to(dtype).double().abs()]
        assert_accurate(F.matmul, torch.matmul, [a, b], dtype, magnitudes, PRODUCT_TERMS)
        x, y = a.to(dtype), b.to(dtype)
        assert runs_ours(lambda x=x, y=y: F.matmul(x, y)), (m, n, k)


@LOW_PRECISION
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_and_its_gradients_are_accurate(activation, dtype):
    for m, n, k in [(129, 264, 1000), (64, 72, 8), (512, 1024, 256)]:
        x, w, b = make(m, k) * k**-0.5, make(n, k), make(n)
        magnitudes = [t.cuda() for t in product_magnitudes(x.cpu(), w.cpu(), b.cpu())]
        inputs = [t.requires_grad_() for t in (x, w, b)]

        def ours(x, w, b):
            return F.linear(x, w, b, activation=activation)

        # The gradient after rounding dz to 16 bits: the rule's other side, stock's error, does so too.
        assert_accurate(ours, stock(activation), inputs, dtype, magnitudes, PRODUCT_TERMS)
        with torch.no_grad():
            low = [t.to(dtype) for t in inputs]
            assert runs_ours(lambda low=low: ours(*low))


@LOW_PRECISION
def test_batches_and_operands_that_a_batch_shares(dtype):
    for a, b in [
        (make(5, 70, 72), make(5, 72, 136)),
        (make(70, 72), make(5, 72, 136)),
        (make(5, 70, 72), make(1, 136, 72).mT),
        (make(2, 3, 70, 72), make(2, 3, 72, 136)),
    ]:
        magnitudes = [a.abs() @ b.abs()]
        assert_accurate(F.matmul, torch.matmul, [a, b], dtype, magnitudes, PRODUCT_TERMS)
        low = a.to(dtype), b.to(dtype)
        assert runs_ours(lambda low=low: F.matmul(*low)), (a.shape, b.shape)


@LOW_PRECISION
def test_rows_with_gaps_between_them(dtype):
    a, b = make(200, 640).to(dtype)[:, 8:328], make(640, 272).to(dtype)[:320, :264]
    assert_same_bits(F.matmul(a, b), F.matmul(a.contiguous(), b.contiguous()))
    assert runs_ours(lambda: F.matmul(a, b))


@LOW_PRECISION
def test_relu_s_mask_gives_the_gradients_of_relu(dtype):
    """relu commutes with rounding: fused or after the product, the same bits."""
    x, w, b = (t.to(dtype).requires_grad_() for t in (make(300, 320), make(200, 320), make(200)))
    grad = make(300, 200).to(dtype)
    fused, composed = F.linear(x, w, b, activation="relu"), F.relu(F.linear(x, w, b))
    assert_same_bits(fused, composed)
    expected = torch.autograd.grad(composed, (x, w, b), grad)
    for ours, theirs in zip(torch.autograd.grad(fused, (x, w, b), grad, retain_graph=True), expected, strict=True):
        assert_same_bits(ours, theirs)
    for ours, theirs in zip(torch.autograd.grad(fused, (x, w, b), grad, create_graph=True), expected, strict=True):
        assert ours.requires_grad
        assert_same_bits(ours.detach(), theirs)


def test_relu_s_mask_is_what_is_kept():
    x, w = make(4096, 1024).bfloat16(), make(4096, 1024).bfloat16()
    y, mask = torch.ops.pytorch_ext.linear_forward(x, w, None, "relu")
    assert mask.dtype == torch.int64 and 16 * mask.nbytes == y.nbytes
    bits = torch.stack([mask >> i & 1 for i in range(64)], 2).flatten(1)
    assert torch.equal(bits.bool(), y > 0)


@LOW_PRECISION
def test_the_bits_do_not_change_from_run_to_run(dtype):
    for m, n, k in [(4096, 4096, 4096), (1000, 520, 8192), (8192, 136, 1024)]:
        a, b = make(m, k, dtype=torch.float32).to(dtype), make(k, n, dtype=torch.float32).to(dtype)
        first = F.matmul(a, b)
        for _ in range(20):
            assert torch.equal(F.matmul(a, b), first)


def test_products_on_several_streams_and_in_a_graph():
    a, b = make(512, 512).bfloat16(), make(512, 512).bfloat16()
    expected = F.matmul(a, b)
    found = []
    for stream in [torch.cuda.Stream() for _ in range(3)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            found.append(F.matmul(a.clone(), b))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = F.matmul(a, b)
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for result in (*found, captured):
        assert_same_bits(result, expected)


def test_what_is_not_covered_is_left_to_torch():
    def low(*shape):
        return make(*shape).bfloat16()

    for a, b in [
        (low(64, 65), low(65, 64)),
        (low(64, 64).mT, low(72, 64).mT),
        (low(64, 64), low(64, 100)),
        (low(1, 64).expand(64, 64), low(64, 64)),
        (low(0, 64), low(64, 64)),
        (low(64, 0), low(0, 64)),
        (low(2, 1, 8, 64), low(3, 64, 8)),
    ]:
        assert_same_bits(F.matmul(a, b), torch.matmul(a, b))
        assert not runs_ours(lambda a=a, b=b: F.matmul(a, b))
    x, w = make(64, 64), make(64, 64)
    assert not runs_ours(lambda: F.matmul(x, w)) and not runs_ours(lambda: F.matmul(x.float(), w.float()))
