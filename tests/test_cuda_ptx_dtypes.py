"""What nvcc makes of the CUDA kernels for 16-bit storage types: as test_cuda_ptx.py."""

import torch
from ptx.compiled import InterpretedKernels
from test_cuda_ptx import needs_nvcc, runner  # noqa: F401


class Of16Bits(InterpretedKernels):
    pytestmark = needs_nvcc
    architecture = "sm_90"
    # The third level of sums: from float to float.
    too_deep = ("sum_contiguous_slices_kernelIff", "sum_columns_kernelIffNS0_9ArrayTerm")


class TestBFloat16(Of16Bits):
    dtype = torch.bfloat16


class TestHalf(Of16Bits):
    dtype = torch.float16
