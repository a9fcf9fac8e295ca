"""The tensor core products' own source on an emulated device, and where they put what.

No GPU is needed: tests/emulator/hopper.h does what the manuals say of TMA, mbarrier and wgmma. That the manuals were
read rightly is what only silicon shows.
"""

import ctypes
import functools
import tempfile

import pytest
import torch
from accuracy import PRODUCT_TERMS, assert_same_bits, unit_roundoff
from conftest import needs_native
from emulator import machines
from emulator.arguments import ACTIVATIONS
from emulator.memory import Memory
from emulator.tensor_cores import (
    LATE_BOXES,
    LATE_PRODUCTS,
    LATE_STORES,
    LAYOUTS,
    TensorCores,
    compile_faulty_runner,
    compile_runner,
    operands,
)
from test_cuda_emulated import compiled_runner

from pytorch_ext.ops.activation import ACTIVATIONS as COMPOSED

pytestmark = pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler")

# What is asynchronous happens at once, as late as it may, or as late as hurts the other one.
SCHEDULES = {
    "at once": (0, False),
    "boxes late": (LATE_BOXES, False),
    "boxes late, backwards": (LATE_BOXES, True),
    "products and stores late": (LATE_PRODUCTS | LATE_STORES, False),
    "all late, backwards": (LATE_BOXES | LATE_PRODUCTS | LATE_STORES, True),
}
# Of one multiprocessor: wide tiles; more steps along K than stages, so that stages are used again; tails everywhere.
WIDE, NARROW = (200, 248, 600), (200, 264, 456)


@functools.cache
def runner():
    with tempfile.TemporaryDirectory() as folder:
        return compile_runner(folder)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def tensor_cores(request):
    return TensorCores(runner(), *request.param, multiprocessors=1)


def assert_close(found, exact, magnitude, dtype):
    """The accuracy rule for a product that is rounded to 16 bits once."""
    allowed = PRODUCT_TERMS * unit_roundoff(torch.float32) * magnitude + unit_roundoff(dtype) * exact.abs()
    error = (found.double() - exact).abs()
    assert (error <= allowed + torch.finfo(dtype).tiny).all(), f"{(error - allowed).max()} above the bound"


def check(device, a, b, bias=None, activation="none", with_mask=False):
    c, z, mask = device.product(a, b, bias, activation, with_mask)
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    if z is not None:
        assert_close(z, exact, magnitude, a.dtype)
    y = COMPOSED[activation](exact)
    # The functions' slopes are at most 1.13 (gelu, silu), their own errors a few units of float32.
    assert_close(c, y, 1.2 * magnitude + y.abs(), a.dtype)
    if with_mask:
        bits = torch.stack([mask >> i & 1 for i in range(64)], 2).flatten(1)[:, : c.shape[1]]
        assert torch.equal(bits.bool(), c > 0) and 0 < bits.sum() < bits.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=str)
def test_products_in_every_layout(tensor_cores, layout, shape):
    a, b = operands(layout, *shape, torch.bfloat16)
    assert tensor_cores.plan(a, b)["wide"] == (shape == WIDE)
    check(tensor_cores, a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_float16(layout):
    for shape in (WIDE, NARROW):
        check(TensorCores(runner(), multiprocessors=1), *operands(layout, *shape, torch.float16))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation_before_the_one_rounding(tensor_cores, activation):
    a, b = operands("NT", 100, 200, 80, torch.bfloat16)
    check(tensor_cores, a * 0.2, b, torch.randn(200).bfloat16(), activation, with_mask=activation == "relu")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 64), (3, 136, 8), (129, 16, 72), (64, 1000, 16), (300, 8, 1000)])
def test_tails_and_tiles_without_a_single_row_of_a_consumer(tensor_cores, shape):
    check(tensor_cores, *operands("NT", *shape, torch.float16), torch.randn(shape[1]).half(), "relu")
    check(tensor_cores, *operands("NN", *shape, torch.float16))
    m, n, k = shape
    check(tensor_cores, *operands("TN", -(-m // 8) * 8, n, k, torch.float16))


def test_batches_and_operands_that_a_batch_shares(tensor_cores):
    for batch in [3, 1]:
        check(tensor_cores, *operands("NT", 70, 136, 72, torch.bfloat16, (batch,)))
    a, b = operands("NN", 70, 136, 72, torch.bfloat16, (3,))
    check(tensor_cores, a[0], b)
    check(tensor_cores, a, b[:1].expand(3, 72, 136))


def test_padded_rows_and_more_multiprocessors_than_tiles():
    a, b = operands("NN", 140, 272, 208, torch.bfloat16)
    for late, backwards in SCHEDULES.values():
        device = TensorCores(runner(), late, backwards, multiprocessors=132)
        check(device, a[:, :200], b[:200, 8:264])
        check(device, a[:, 8:200], b[:192, :264])


def test_nan_and_infinity_stay_in_their_rows_and_columns():
    a, b = operands("NT", 40, 64, 40, torch.bfloat16)
    a[3, 5], b[7, 9], a[39, 39] = float("nan"), float("inf"), float("-inf")
    c, _, mask = TensorCores(runner()).product(a, b, None, "relu", True)
    exact = torch.relu(a.float() @ b.float())
    torch.testing.assert_close(c.float(), exact, rtol=0.02, atol=0.05, equal_nan=True)
    bits = torch.stack([mask >> i & 1 for i in range(64)], 2).flatten(1)
    assert torch.equal(bits.bool(), (c > 0) | c.isnan())


@needs_native
def test_relu_s_mask_is_read_as_it_is_written():
    """linear's backward from the mask has the bits of its backward from the output."""
    a, b = operands("NT", 70, 136, 72, torch.bfloat16)
    y, _, mask = TensorCores(runner()).product(a, b, None, "relu", True)
    grad = torch.randn(70, 136).bfloat16()
    machine, found = machines.Emulator(compiled_runner(torch.bfloat16), torch.bfloat16), []
    for saved in ({"saved": y}, {"mask": mask}):
        dz, dbias = machine.memory.empty(70, 136), machine.memory.empty(136)
        p = machine.structures.LinearGradient(70, 136, machine.memory.put(grad), 136, 1, dz=dz.address)
        p.activation, p.dbias = ACTIVATIONS.index("relu"), dbias.address
        for name, tensor in saved.items():
            setattr(p, name, machine.memory.put(tensor))
        machine.call("linear_gradient", p)
        found.append((dz.tensor, dbias.tensor))
    for from_output, from_mask in zip(*found, strict=True):
        assert_same_bits(from_mask, from_output)
    assert (found[0][0] == 0).any()


def test_what_the_launcher_cannot_do_is_an_error():
    with pytest.raises(RuntimeError, match="CUDA error 801"):  # not supported
        TensorCores(runner()).product(torch.ones(5, 9).bfloat16(), torch.ones(9, 8).bfloat16())


# ---- what the emulated device notices --------------------------------------------------------------------------------

FAULTS = {
    "a stage given back before its products are done": ("multiply_wait<1>();", "multiply_wait<2>();"),
    "products of a stage that is not full": ("barrier_wait(shared.full(place.stage), place.parity);", ""),
    "a stage filled before it is empty": ("barrier_wait(shared.empty(place.stage), place.parity ^ 1);", ""),
    "a stage that is never given back": ("if (k > 0) release(before);", ""),
    "results overwritten before they are stored": ("if (thread == 0) wait_for_stores<Tile::result_buffers - 1>();", ""),
    "results the copy engine may not see": ("copy_engine_fence();", ""),
}


@functools.cache
def faulty_runner():
    with tempfile.TemporaryDirectory() as folder:
        return compile_faulty_runner(folder, FAULTS.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulated_device_notices(fault):
    a, b = operands("NT", 200, 264, 600, torch.bfloat16)
    schedules = iter(SCHEDULES.values())
    with pytest.raises((AssertionError, RuntimeError), match="above the bound|deadlock|may not see|arrivals"):
        for late, backwards in schedules:
            check(TensorCores(faulty_runner(), late, backwards, 1, [*FAULTS].index(fault)), a, b)


# ---- where things lie ------------------------------------------------------------------------------------------------


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
