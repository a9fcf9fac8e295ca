"""Conversions between 16 and 32 bits: a vector's are those of torch, value by value."""

import pytest
import torch
from accuracy import assert_same_bits

import pytorch_ext.functional as F

each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
LENGTHS = (2**16, 2**15 + 7, 19, 3)


def every_value(dtype):
    """Subnormal, infinite and NaN ones too."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@each_dtype
def test_every_value_is_read_as_it_is(each_cpu, dtype):
    x = every_value(dtype)
    for n in LENGTHS:
        for got in each_cpu(lambda n=n: F.relu(x[:n])).values():
            assert_same_bits(got, torch.relu(x[:n]))


@each_dtype
def test_results_beyond_every_value_are_rounded_as_torch_does(each_cpu, dtype):
    x = every_value(dtype)
    y = x[torch.randperm(len(x))]
    squares = ((x.float() - y.float()) ** 2).to(dtype)
    for n in LENGTHS:
        for got in each_cpu(lambda n=n: F.mse_loss(x[:n], y[:n], reduction="none")).values():
            assert_same_bits(got, squares[:n])


@each_dtype
def test_ties_are_rounded_to_even(each_cpu, dtype):
    """Between 2^8 and 2^9, or 2^11 and 2^12, neighbours are 2 apart."""
    x, one = every_value(dtype), torch.ones(1, dtype=dtype)
    sums = x.float() + 1
    neighbours = torch.nextafter(sums, sums.new_tensor(torch.inf)).to(dtype), torch.nextafter(sums, sums - 1).to(dtype)
    assert (neighbours[0] != neighbours[1]).sum() > 100  # ties, some down and some up
    for got in each_cpu(lambda: F.linear(x[:, None], one[:, None], one)).values():
        assert_same_bits(got[:, 0], sums.to(dtype))
