# ruff: noqa: F811 (fixtures that another file has)
"""How products are divided among multiprocessors, and that the emulator's tests reach every kernel of a product."""

import ctypes
import re

import pytest
import torch
from emulator import checks, machines
from test_cuda_emulated import compiled_runner, pytestmark  # noqa: F401


def planned(m, n, k, multiprocessors=132):
    """[(rows of a tile or None, blocks)] of the launches that a product of contiguous factors asks for."""
    runner, found = compiled_runner(torch.float32), []
    machine = machines.Emulator(runner, multiprocessors=multiprocessors)
    p = machine.structures.Product(M=m, N=n, K=k, c_row=n, batch=1)
    p.A.row, p.A.column, p.B.row, p.B.column = k, 1, n, 1
    runner.emulator_record(1)
    try:
        assert runner.product(ctypes.byref(p), 16) == 0  # an address that nobody follows
        for i in range(runner.recorded_launches()):
            shape = (ctypes.c_int64 * 8)()
            runner.recorded_shape(i, shape)
            tile = re.search(r"4TileILi(\d+)E", runner.recorded_kernel(i).decode())
            found.append((tile and int(tile[1]), shape[0]))
    finally:
        runner.emulator_record(0)
    return found


@pytest.mark.parametrize("size", [2048, 4096, 8192])
def test_large_products_have_large_tiles_of_whole_k_where_these_fill_the_device(size):
    assert planned(size, size, size) == [(128, (size // 128) ** 2)]


@pytest.mark.parametrize("multiprocessors", [80, 108, 132, 148])
@pytest.mark.parametrize("shape", [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (128, 128, 60000)], ids=str)
def test_no_division_leaves_half_of_the_multiprocessors_idle(shape, multiprocessors):
    m, n, k = shape
    (tile, blocks), *fold = planned(*shape, multiprocessors)
    waves = -(-blocks // multiprocessors)
    assert blocks / (waves * multiprocessors) > 1 / 2
    tiles = -(-m // tile) * -(-n // tile)
    assert blocks % tiles == 0 and bool(fold) == (blocks > tiles)
    assert blocks // tiles <= -(-k // 256)  # whole chunks


@pytest.mark.parametrize("shape", [(64, 128, 784), (128, 784, 64), (64, 10, 128), (300, 128, 784)], ids=str)
def test_products_of_small_models_have_small_tiles(shape):
    assert planned(*shape)[0][0] == 32


def test_the_chunks_sums_are_bounded():
    (tile, blocks), *fold = planned(8192, 8192, 256 * 3, multiprocessors=100000)
    assert blocks == (8192 // tile) ** 2 and not fold


def test_every_kernel_of_a_product_runs_in_the_emulator():
    machine = machines.Emulator(compiled_runner(torch.float32), multiprocessors=1)
    before = machines.launches_of(machine.runner)
    for m, n in [(32, 32), (64, 64), (128, 128)]:
        for a, b in checks.transpositions(m, n, 20):
            checks.check_matmul(machine, a, b)
    ran = (machines.launches_of(machine.runner) - before).keys()
    assert len(ran) == 3 * 4 and all("14product_kernel" in name for name in ran), ran
