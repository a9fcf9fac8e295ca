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
            fits = kernel["shared"] <= SHARED[architecture] and kernel["spilled"] <= SPILLED
            assert fits and 0 < kernel["registers"] <= 255, (what, kernel)
    return found


def test_the_largest_tiles_and_rows_fit(record_property):
    found = check(90, "4096")
    wide = found["product 4096x4096x4096, bfloat16"][0]
    assert wide["kernel"] == "tensor_core_product_kernel" and wide["spilled"] == 0 and wide["shared"] > 200_000
    record_property("sm_90", found)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_fits_every_architecture(architecture):
    found = check(architecture)
    launched = {kernel["kernel"] for kernels in found.values() for kernel in kernels}
    assert {"product_kernel", "softmax_forward_kernel", "cross_entropy_kernel", "adam_kernel"} <= launched
    assert all(found[name][0]["wide"] for name in ("SGD", "AdamW", "clipping", "gelu"))
