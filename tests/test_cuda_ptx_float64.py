"""What nvcc makes of the CUDA kernels in float64, whose functions are CUDA's own: close to libm's."""

import torch
from ptx import lint
from ptx.compiled import InterpretedKernels, InterpretedProducts
from test_cuda_ptx import needs_nvcc, runner  # noqa: F401

# Parts of the names of kernels that call exp, log, log1p, tanh or erf.
WITH_FUNCTIONS = (
    "FunctionValue",
    "Activation",
    "GradientTerm",
    "LossTerm",
    "class_",
    "softmax",
    "product",
    "fold_chunks",
)


class TestFloat64(InterpretedKernels, InterpretedProducts):
    pytestmark = needs_nvcc
    architecture, dtype, tolerance = "sm_90", torch.float64, 1e-12

    def test_only_operations_of_the_contract(self):
        """But for what CUDA's functions are made of."""
        plain = {name: k for name, k in self.kernels.items() if not any(map(name.__contains__, WITH_FUNCTIONS))}
        assert len(plain) >= 20
        assert [line for kernel in plain.values() for line in lint.violations(kernel)] == []
