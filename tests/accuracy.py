"""The accuracy rule applied, and the comparison of bits, once for the whole suite."""

import numpy as np
import torch

from pytorch_ext.accuracy import PRODUCT_TERMS, SUM_TERMS, allowed_error, unit_roundoff

__all__ = ["PRODUCT_TERMS", "SUM_TERMS", "allowed_error", "unit_roundoff"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gradients(function, inputs, grad_seed=0):
    """(output, gradient of every floating-point input that requires one) for a fixed random output gradient."""
    output = function(*inputs)
    wanted = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    if not wanted:
        return [output]
    generator = torch.Generator("cpu").manual_seed(grad_seed)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu")
    grad = grad.to(torch.bfloat16).to(output)
    return [output, *torch.autograd.grad(output, wanted, grad, allow_unused=True)]


def assert_accurate(ours, stock, inputs, dtype, magnitudes=None, factor=SUM_TERMS):
    """Against float64: max|error| <= max(2 x stock's error in the same dtype, factor * u * magnitude) + half an ulp.

    ``inputs`` are float64 tensors (or anything else, passed on); those that require a gradient get one compared.
    ``magnitudes``: the sums of |terms| of the output and of every gradient; by default the reference's own magnitude.
    """

    def converted(to):
        def convert(t):
            if not isinstance(t, torch.Tensor) or not t.is_floating_point():
                return t
            return t.detach().to(dtype).to(to).requires_grad_(t.requires_grad)

        return [convert(t) for t in inputs]

    exact = gradients(stock, converted(torch.float64))
    stock_results = gradients(stock, converted(dtype))
    our_results = gradients(ours, converted(dtype))
    for i, (reference, theirs, result) in enumerate(zip(exact, stock_results, our_results, strict=True)):
        if reference is None:
            assert result is None and theirs is None
            continue
        assert result.dtype == theirs.dtype and result.shape == theirs.shape
        if reference.numel() == 0:
            continue
        allowed = allowed_error(reference, theirs, dtype, None if magnitudes is None else magnitudes[i], factor)
        error = (result.double() - reference).abs()
        worst = (error - allowed).argmax()
        assert (error <= allowed).all(), (
            f"result {i} at flat index {worst.item()}: {result.flatten()[worst].item()!r}, exact "
            f"{reference.flatten()[worst].item()!r}, error {error.flatten()[worst].item():.3g}, "
            f"allowed {allowed.flatten()[worst].item():.3g}"
        )


def bits_of(x):
    x = x.detach().cpu().contiguous().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, order="C")
    return x, x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def assert_same_bits(a, b, what=""):
    """Finite numbers and infinities bit for bit, NaN in the same places; names the first coordinate that differs."""
    if isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16:
        a, b = a.float(), b.float()
    (x, x_bits), (y, y_bits) = bits_of(a), bits_of(b)
    assert x.shape == y.shape and x.dtype == y.dtype, f"{what}: {x.dtype} {x.shape} against {y.dtype} {y.shape}"
    differ = (x_bits != y_bits) & ~(np.isnan(x) & np.isnan(y))
    if differ.any():
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(f"{what}: {differ.sum()} of {x.size} differ, first at {at}: {x[at]!r} against {y[at]!r}")


def assert_all_same_bits(results):
    """``results`` by name (of a path, of an instruction set): lists of tensors that must agree bit for bit."""
    names = list(results)
    for name in names[1:]:
        for i, (a, b) in enumerate(zip(results[names[0]], results[name], strict=True)):
            assert_same_bits(a, b, f"result {i} of {names[0]} against {name}")
