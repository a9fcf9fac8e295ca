"""The sum over broadcast dimensions: in the contract's order for any layout, instruction set and thread count."""

import pytest
import torch
from accuracy import DTYPES, assert_all_same_bits, assert_same_bits
from conftest import on_cpu_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from spec.matmul import sum_to_shape

from pytorch_ext import native
from pytorch_ext.backends import choice

pytestmark = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")

SHAPES = [
    ((3, 4), ()),
    ((3, 4), (1, 1)),
    ((300, 17), (17,)),
    ((300, 17), (300, 1)),
    ((5, 70, 33), (5, 1, 33)),
    ((5, 70, 33), (70, 1)),
    ((4, 3, 5, 6), (3, 1, 6)),
    ((4, 3, 5, 6), (4, 1, 5, 1)),
    ((2, 3, 2, 3, 2), (1, 3, 1, 3, 1)),
    ((9000,), (1,)),
    ((4097, 3), (3,)),
    ((3, 9000), (3, 1)),
    ((64, 1), (1,)),
    ((5, 0), (5, 1)),
    ((0, 5), (1, 5)),
    ((1, 5), (5,)),
]


@pytest.mark.parametrize(("shape", "sizes"), SHAPES, ids=str)
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, shape, sizes):
    x = torch.randn(shape)
    results = each_cpu(lambda: [choice.kernels.sum_to_size(x, sizes)])
    assert_all_same_bits(results)
    assert_same_bits(next(iter(results.values()))[0], sum_to_shape(x.numpy(), sizes))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_gives_the_bits_of_a_contiguous_copy(data):
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)) + data.draw(
        st.lists(st.integers(1, 100), max_size=1)
    )
    x = torch.randn(shape).permute(data.draw(st.permutations(range(len(shape)))))
    if data.draw(st.booleans()):
        x = x.repeat_interleave(2, -1)[..., ::2]
    if data.draw(st.booleans()):
        x = x[..., :1].expand_as(x)
    sizes = [data.draw(st.sampled_from((1, size))) for size in x.shape][data.draw(st.integers(0, x.dim())) :]
    ours = choice.kernels.sum_to_size(x, sizes)
    assert_same_bits(ours, choice.kernels.sum_to_size(x.clone(memory_format=torch.contiguous_format), sizes))
    assert_same_bits(ours, sum_to_shape(x.numpy(), sizes))


@on_cpu_paths
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_summed_in_its_accumulator(dtype):
    x = torch.randint(-8, 8, (10000, 3)).to(dtype)
    result = choice.kernels.sum_to_size(x, (3,))
    assert result.dtype == dtype
    assert torch.equal(result, x.double().sum(0).to(dtype))


def test_sizes_that_do_not_broadcast_are_named():
    with pytest.raises(RuntimeError, match=r"sum_to_size: expected sizes that broadcast to \[3, 4\], got \[3\]"):
        choice.kernels.sum_to_size(torch.ones(3, 4), (3,))
