"""How a tensor core product is divided, and where its operands and results lie: by the manuals' formulas."""

import ctypes

import pytest
import torch
from emulator.memory import Memory
from emulator.tensor_cores import TensorCores, operands
from test_cuda_emulated_tensor_cores import WIDE, pytestmark, runner  # noqa: F401


@pytest.mark.parametrize("grid", [(1, 1, 1), (16, 8, 1), (17, 5, 2), (40, 3, 3), (3, 100, 1), (33, 33, 1)])
def test_each_tile_is_visited_once(grid):
    at, found = (ctypes.c_int * 3)(), set()
    count = grid[0] * grid[1] * grid[2]
    for index in range(count):
        runner().tile_at(*grid, index, at)
        found.add(tuple(at))
    assert len(found) == count
    assert all(0 <= x < size for tile in found for x, size in zip(tile, grid, strict=True))


def test_the_tiles_that_run_at_a_time_are_a_square():
    at, rows, columns = (ctypes.c_int * 3)(), set(), set()
    for index in range(128):  # of 128 x 256 elements
        runner().tile_at(64, 32, 1, index, at)
        rows.add(at[0]), columns.add(at[1])
    assert len(rows) == 16 and len(columns) == 8


def test_what_tma_is_told_of_every_layout():
    device = TensorCores(runner(), multiprocessors=1)
    m, n, k = WIDE

    def plan(layout, **more):
        return device.plan(*operands(layout, m, n, k, torch.bfloat16, **more))

    a_rows = {"size": [k, m, 1], "stride": [2 * k, 2 * k * m], "box": [64, 128, 1]}
    b_columns = {"size": [k, n, 1], "stride": [2 * k, 2 * k * n], "box": [64, 256, 1]}
    a_columns = {"size": [m, k, 1], "stride": [2 * m, 2 * m * k], "box": [64, 64, 1]}
    b_rows = {"size": [n, k, 1], "stride": [2 * n, 2 * n * k], "box": [64, 64, 1]}
    c = {"size": [n, m, 1], "stride": [2 * n, 2 * n * m], "box": [64, 64, 1]}
    for layout, a, b, majors in [
        ("NT", a_rows, b_columns, (0, 0)),
        ("NN", a_rows, b_rows, (0, 1)),
        ("TN", a_columns, b_rows, (1, 1)),
    ]:
        found = plan(layout)
        assert (found["a"], found["b"], found["c"]) == (a, b, c), layout
        assert (found["a_major"], found["b_major"]) == majors
        assert (found["down"], found["across"], found["steps"]) == (2, 1, 10)
    batched = plan("NT", batch=(5,))
    assert batched["a"] == {"size": [k, m, 5], "stride": [2 * k, 2 * k * m], "box": [64, 128, 1]}
    assert batched["batch"] == 5 and batched["a_is_batched"] == batched["b_is_batched"] == 1


def test_what_is_not_covered():
    device = TensorCores(runner())

    def covered(a, b):
        return device.plan(a, b) is not None

    def make(*shape):
        return torch.zeros(shape, dtype=torch.bfloat16)

    assert covered(make(5, 8), make(16, 8).T)
    assert not covered(make(5, 9), make(16, 9).T), "rows of 18 bytes"
    assert not covered(make(5, 8), make(12, 8).T), "rows of C of 24 bytes"
    assert not covered(make(8, 16).T, make(24, 8).T), "both transposed"
    assert not covered(make(1, 8).expand(5, 8), make(16, 8).T), "a row for all"
    assert not covered(make(5, 1).expand(5, 8), make(16, 8).T), "a column for all"
    assert not covered(make(10, 16)[::2, ::2], make(16, 8).T), "gaps between columns"
    assert covered(make(10, 16)[::2, :8], make(16, 8).T)
    assert not covered(make(0, 8), make(16, 8).T) and not covered(make(5, 0), make(16, 0).T)
    memory = Memory(torch.bfloat16, alignment=16)
    put = memory.put
    memory.put = lambda t: t is not None and put(t) + 2 or None
    assert device.plan(make(5, 8), make(16, 8).T, memory) is None, "an address that is no multiple of 16"


def swizzle(address):
    """Where TMA puts the 16-byte piece of an address: bits 4 to 6 xor bits 7 to 9."""
    return address ^ (address >> 7) % 8 << 4


@pytest.mark.parametrize("is_line_major", [False, True], ids=["K-major", "line-major"])
@pytest.mark.parametrize("lines", [128, 256])
def test_wgmma_reads_where_tma_writes(lines, is_line_major):
    """Every element of a tile, at two bases, by the descriptor's fields: start, leading and stride offset, mode."""
    for base in (0x400, 0x30C00):
        assert base % 1024 == 0
        for step in range(4):
            start = base + step * runner().step_bytes(int(is_line_major))
            bits = runner().matrix_descriptor(base, int(is_line_major)) + (start - base) // 16
            start_field, leading, stride = ((bits >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
            assert (start_field, bits >> 62, bits >> 49 & 7) == (start, 1, 0)
            for line in range(lines):
                for k in range(16):
                    if is_line_major:  # boxes of 64 lines (inner) x 64 along K
                        box, depth = line // 64, step * 16 + k
                        written = swizzle(base + box * 64 * 128 + depth * 128 + line % 64 * 2)
                        read = start + line // 64 * leading + k // 8 * stride + k % 8 * 128 + line % 64 * 2
                    else:  # one box of 64 along K (inner) x lines
                        written = swizzle(base + line * 128 + (step * 16 + k) * 2)
                        read = start + line // 8 * stride + line % 8 * 128 + k * 2
                    assert swizzle(read) == written, (base, step, line, k)


def test_a_thread_s_sums_are_where_wgmma_leaves_them():
    """Fragment D of wgmma m64nNk16: each sum of the 64 x 256 exactly once, by the manual's formula."""
    found = set()
    for thread in range(128):
        for i in range(128):
            row = 16 * (thread // 32) + thread % 32 // 4 + (8 if i % 4 >= 2 else 0)
            column = 8 * (i // 4) + 2 * (thread % 4) + i % 2
            assert (runner().fragment_row(thread, i), runner().fragment_column(thread, i)) == (row, column)
            found.add((row, column))
    assert len(found) == 64 * 256


def test_the_results_of_a_warp_lie_in_different_banks():
    for warp in range(4):
        for i in range(0, 32, 2):
            lanes = range(32 * warp, 32 * warp + 32)
            at = [runner().fragment_row(t, i) * 128 + runner().fragment_column(t, i) * 2 for t in lanes]
            assert len({runner().swizzled(x) // 4 % 32 for x in at}) == 32
