"""As test_cuda_ptx.py, for the architecture whose PTX nvcc writes in another way."""

from ptx.compiled import InterpretedKernels, InterpretedProducts, InterpretedSteps
from test_cuda_ptx import needs_nvcc, runner  # noqa: F401


class TestSm100(InterpretedKernels, InterpretedProducts, InterpretedSteps):
    pytestmark = needs_nvcc
    architecture = "sm_100"
