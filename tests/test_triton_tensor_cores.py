"""Products outside the contract on the Triton path: which kernel takes them, and how accurate it is."""

import pytest
import torch
from accuracy import PRODUCT_TERMS, assert_accurate
from conftest import needs_interpreter

import pytorch_ext
from pytorch_ext import triton_path
from pytorch_ext.functional import linear, matmul

pytestmark = needs_interpreter
KERNEL = "tensor_core_product_kernel"


@pytest.fixture
def launched(launched):
    """On the Triton path."""
    with pytorch_ext.backend("triton"):
        yield launched


def magnitudes(x, w, b):
    """The sums of |terms| of y = x W^T + b and of its gradients, for a gradient below 5."""
    x, w, b = (t.detach().abs() for t in (x, w, b))
    return [x @ w.T + b, 5 * w.sum(0).expand_as(x), 5 * x.sum(0).expand_as(w), torch.full_like(b, 5.0 * len(x))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(16, 16, 16), (72, 200, 136), (264, 24, 304)])
def test_sixteen_bits_go_through_blocks_and_are_accurate(launched, dtype, m, n, k):
    inputs = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((m, k), (n, k), (n,))]
    assert_accurate(linear, torch.nn.functional.linear, inputs, dtype, magnitudes(*inputs), PRODUCT_TERMS)
    assert launched[KERNEL] == 3 and "product_kernel" not in launched


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_epilogue_keeps_what_the_gradient_needs(launched, activation):
    x, w, b = (torch.randn(*shape).bfloat16().requires_grad_() for shape in ((40, 64), (48, 64), (48,)))
    y = linear(x, w, b, activation=activation)
    z = torch.nn.functional.linear(x.float(), w.float(), b.float())
    expected = getattr(torch.nn.functional, activation)(z)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-5)
    found, wanted = (torch.autograd.grad(t.sum(), (x, w, b)) for t in (y, expected))
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.float(), e.float(), rtol=2**-5, atol=0.1)
    assert launched[KERNEL] == 3


def test_what_does_not_lie_in_blocks_takes_the_other_kernel(launched):
    x, w = torch.randn(32, 48).bfloat16(), torch.randn(24, 48).bfloat16()
    cases = {
        "a row that does not begin at 16 bytes": (torch.randn(32, 49).bfloat16()[:, 1:], w.t()),
        "rows of an odd length": (torch.randn(32, 25).bfloat16(), torch.randn(25, 24).bfloat16()),
        "a result with rows of an odd length": (x, torch.randn(48, 25).bfloat16()),
        "matrices that do not begin at 16 bytes": (
            torch.randn(2, 32 * 48 + 4).bfloat16()[:, 4:].view(2, 32, 48),
            w.t()[None].repeat(2, 1, 1),
        ),
        "one matrix and a batch of those": (x, torch.randn(2, 48 * 24 + 4).bfloat16()[:, :-4].view(2, 48, 24)),
        "rows that are one row": (x[:1].expand(32, 48), w.t()),
        "too few rows": (x[:8], w.t()),
    }
    for what, (a, b) in cases.items():
        found = matmul(a, b)
        torch.testing.assert_close(found.float(), a.float() @ b.float(), rtol=2**-7, atol=1e-4, msg=what)
    assert launched == {"product_kernel": len(cases)}
    matmul(x, w.t())
    matmul(x.t().contiguous().t(), w.t().contiguous())
    assert launched == {"product_kernel": len(cases), KERNEL: 2}


# Batches of matrices that are equally far apart, or the same one.
BATCHES = {
    "matrices": ((3, 32, 48), (3, 48, 24)),
    "two dimensions": ((2, 3, 40, 48), (2, 3, 48, 24)),
    "one left matrix": ((40, 48), (3, 48, 24)),
    "one right matrix for each of a dimension": ((2, 3, 40, 48), (3, 48, 24)),
    "each the same along another dimension": ((2, 1, 40, 48), (1, 3, 48, 24)),
    "three dimensions": ((2, 2, 3, 16, 16), (2, 2, 3, 16, 16)),
}


@pytest.mark.parametrize("lies", ["rows", "columns", "heads"])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_goes_through_blocks_too(launched, name, lies):
    """Matrices stored by rows or by columns, or rows of several matrices in turn, as heads lie; and their gradients."""
    a, b = (torch.randn(size).bfloat16() for size in BATCHES[name])
    if lies == "columns":
        a, b = (t.mT.contiguous().mT for t in (a, b))
    if lies == "heads":
        a, b = (t.transpose(-2, -3).contiguous().transpose(-2, -3) if t.dim() > 2 else t for t in (a, b))
    a, b = a.requires_grad_(), b.requires_grad_()
    found = matmul(a, b)
    assert launched == {KERNEL: 1}
    wide = [t.detach().double().requires_grad_() for t in (a, b)]
    expected = torch.matmul(*wide)
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-3)
    g = torch.randn(expected.shape).bfloat16()
    pairs = zip(torch.autograd.grad(found, (a, b), g), torch.autograd.grad(expected, wide, g.double()), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.double(), theirs, rtol=2**-7, atol=1e-2)


def test_float32_is_tf32_where_torch_s_flags_ask_for_it_and_nowhere_else(launched, monkeypatch):
    product = triton_path.kernels.product
    x, w = torch.randn(32, 48), torch.randn(24, 48)
    matmul(x, w.t())
    assert launched == {"product_kernel": 1} and product.precision_of(x) == "ieee"

    class OnDevice:
        is_cuda, dtype = True, torch.float32

    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for flag, precision in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = flag
            assert product.precision_of(OnDevice) == precision and product.precision_of(x) == "ieee"
        OnDevice.dtype = torch.bfloat16
        assert product.precision_of(OnDevice) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before

    monkeypatch.setattr(product, "precision_of", lambda t: "tf32")
    torch.testing.assert_close(matmul(x, w.t()), x @ w.t())
    assert launched == {"product_kernel": 1, KERNEL: 1}


def test_tiles_are_the_largest_that_leave_no_multiprocessor_without_one(monkeypatch):
    tensor_cores = triton_path.kernels.tensor_cores
    monkeypatch.setattr(tensor_cores, "INTERPRETED", False)
    monkeypatch.setattr(tensor_cores, "multiprocessors", lambda device: 132)
    sizes = {n: tensor_cores.tile_sizes(n, n, n, torch.bfloat16, False, None)[:3] for n in (256, 2048, 8192)}
    assert sizes == {256: (64, 64, 64), 2048: (128, 128, 64), 8192: (128, 256, 64)}
    assert tensor_cores.tile_sizes(256, 256, 256, torch.bfloat16, False, None, 66)[:3] == (128, 256, 64)
    assert tensor_cores.tile_sizes(8192, 8192, 512, torch.bfloat16, True, None)[:3] == (128, 128, 64)
    assert tensor_cores.tile_sizes(8192, 8192, 512, torch.float32, False, None)[:3] == (128, 128, 32)
