"""What ptxas made of Triton's kernels at the sizes that count: what fits a multiprocessor, and what was spilled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytorch_ext import triton_path

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(triton_path.triton_version() is None, reason="there is no package named triton")

SHARED = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes that a block may have
SPILLED = 32  # bytes of a thread: some float32 products and long rows exceed their registers by 8 to 24
# Addresses of attention's kernels, which are held to 128 registers; Triton 3.6 spills most of them.
SPILLED_BY_ATTENTION = 96


def report(architecture, only):
    """What a process of its own says: this one interprets its kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])
    command = [sys.executable, "-m", "ptx.triton_usage", str(architecture), only]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def check(architecture, only=""):
    found = report(architecture, only)
    for what, kernels in found.items():
        assert kernels, what
        for kernel in kernels:
            limit = SPILLED_BY_ATTENTION if kernel["kernel"].startswith("attention_") else SPILLED
            fits = kernel["shared"] <= SHARED[architecture] and kernel["spilled"] <= limit
            assert kernel["reloads"] == 0, (what, kernel)  # within the innermost loop of a product
            assert fits and 0 < kernel["registers"] <= 255, (what, kernel)
    return found


def test_the_largest_tiles_and_rows_fit(record_property):
    found = check(90, "4096")
    wide = found["product 4096x4096x4096, bfloat16"][0]
    assert wide["kernel"] == "tensor_core_product_kernel" and wide["spilled"] == 0 and wide["shared"] > 200_000
    record_property("sm_90", found)


def test_attention_multiplies_most_of_the_time_and_spills_outside_of_that(record_property):
    found = check(90, "attention")
    names = [kernel["kernel"] for kernels in found.values() for kernel in kernels]
    assert names == ["attention_kernel", "attention_query_gradient_kernel", "attention_key_gradient_kernel"]
    products = {kernel["kernel"]: kernel["shares"] for kernels in found.values() for kernel in kernels}
    assert [len(shares) for shares in products.values()] == [2, 3, 4]
    assert min(min(shares) for shares in products.values()) > 0.7
    record_property("sm_90", products)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_fits_every_architecture(architecture):
    found = check(architecture)
    launched = {kernel["kernel"] for kernels in found.values() for kernel in kernels}
    assert {"product_kernel", "softmax_forward_kernel", "cross_entropy_kernel", "adam_kernel"} <= launched
    assert all(found[name][0]["wide"] for name in ("SGD", "AdamW", "clipping", "gelu"))
