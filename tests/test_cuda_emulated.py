"""The CUDA kernels' own source, run by the SIMT emulator forwards and backwards: the bits of the CPU library."""

import ctypes
import functools
import tempfile

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_native
from emulator import checks, machines, ops
from emulator.arguments import ACTIVATIONS, LOSSES

from pytorch_ext import native

# The CPU library's results do not depend on the number of threads, and waiting for busy processors takes long.
pytestmark = [
    needs_native,
    pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler"),
    pytest.mark.usefixtures("one_thread"),
]

# 132 multiprocessors make products of small tiles and divide K; one makes the largest tiles that are filled.
MACHINES = {f"{'backwards' if b else 'forwards'}-{n}": (b, n) for b in (False, True) for n in (132, 1)}


@functools.cache
def compiled_runner(dtype):
    fma = ["-mavx2", "-mfma"] if "avx2" in native.library.available_capabilities() else []
    with tempfile.TemporaryDirectory() as folder:
        return machines.compile_runner(folder, dtype, fma)


@pytest.fixture
def runner():
    """The function that compiles the launchers for a dtype."""
    return compiled_runner


@pytest.fixture(params=MACHINES.values(), ids=MACHINES)
def machine(request):
    return machines.Emulator(compiled_runner(torch.float32), torch.float32, *request.param)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def any_machine(request):
    """For launchers that do not ask how many multiprocessors there are."""
    return machines.Emulator(compiled_runner(torch.float32), torch.float32, request.param)


@pytest.mark.parametrize("k", [0, 1, 255, 256, 257, 300, 700, 3000])
def test_products_over_any_number_of_chunks(machine, k):
    for m, n in [(1, 1), (3, 5), (33, 31), (32, 36), (130, 129)]:
        checks.check_linear_forward(machine, m, n, k, bias=n > 1)


@pytest.mark.parametrize("k", [16, 270])
@pytest.mark.parametrize("special", [False, True])
def test_products_of_every_tile_whole_or_not_and_every_transposition(machine, k, special):
    for m, n in [(32, 32), (64, 64), (60, 63), (128, 128), (120, 127), (256, 132)]:
        for a, b in checks.transpositions(m, n, k, special=special):
            checks.check_matmul(machine, a, b)


def test_a_batch_of_which_only_some_matrices_are_aligned(machine):
    for m, n, k in [(32, 32, 20), (64, 128, 33)]:
        a, b = checks.random(3 * (k * m + 1)), checks.random(3 * (k * n + 1))
        a, b = a.as_strided((3, m, k), (k * m + 1, 1, m)), b.as_strided((3, k, n), (k * n + 1, n, 1))
        checks.check_matmul(machine, a, b)


@pytest.mark.parametrize("first", [256, 512])
def test_a_product_goes_on_from_the_sums_of_earlier_chunks(machine, first):
    for m, n, k in [(3, 5, 700), (130, 129, 1300), (32, 36, 3000)]:
        a, b = checks.random(m, k), checks.random(k, n)
        whole, _ = ops.product(machine, a, b)
        sums, _ = ops.product(machine, a[:, :first], b[:first])
        total, _ = ops.product(machine, a[:, first:], b[first:], onto=sums)
        assert_same_bits(total, whole)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_forward_and_backward(machine, activation):
    checks.check_linear_forward(machine, 37, 70, 300, activation)
    checks.check_linear_forward(machine, 20, 33, 9, activation, special=True)
    checks.check_linear_backward(machine, 300, 33, 20, activation)
    checks.check_linear_backward(machine, 70, 36, 5, activation)
    checks.check_linear_backward(machine, 70, 36, 5, activation, grad=checks.random(70, 37)[:, :36])


@pytest.mark.parametrize("special", [False, True])
def test_products_of_strided_transposed_expanded_and_batched_operands(machine, special):
    a, b = checks.random(40, 270, special=special), checks.random(270, 36)
    checks.check_matmul(machine, a.T.contiguous().T, b.T.contiguous().T)
    checks.check_matmul(machine, checks.random(80, 540, special=special)[::2, ::2], checks.random(270, 72)[:, 36:])
    checks.check_matmul(machine, a[:1].expand(40, 270), b[:, :1].expand(270, 36))
    checks.check_matmul(machine, checks.random(3, 17, 40, special=special), checks.random(3, 40, 9))
    checks.check_matmul(machine, checks.random(1, 17, 40).expand(3, 17, 40), checks.random(3, 9, 40).mT)


def test_bias_gradients_over_many_rows(any_machine):
    for rows, columns in [(0, 3), (1, 1), (63, 33), (65, 7), (4096, 5), (4097, 40), (9000, 3)]:
        checks.check_linear_backward(any_machine, rows, columns, 1)
    checks.check_linear_backward(any_machine, 100, 40, 3, grad=torch.ones(()).expand(100, 40))
    checks.check_linear_backward(any_machine, 5000, 3, 1, "tanh")


def test_sums_of_more_segments_than_one_segment_holds(any_machine):
    grad = checks.random(4096 * 4096 + 5000, 1)
    dbias = ops.linear_gradient(any_machine, grad)[1]
    x = torch.zeros(len(grad), 1)
    expected = checks.library.linear_backward(grad, x, torch.zeros(1, 1), None, "none", [False, False, True])[2]
    checks.check_all(any_machine, [dbias], [expected], "three levels of segments")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 9), (4096,), (3, 5000)], ids=str)
def test_elementwise_losses(any_machine, shape, reduction):
    for weighted in (False, True):
        checks.check_elementwise_loss(any_machine, "mse_loss", shape, reduction, weighted)
        checks.check_elementwise_loss(
            any_machine, "binary_cross_entropy_with_logits", shape, reduction, weighted, not weighted
        )
    checks.check_elementwise_loss(any_machine, "mse_loss", shape, reduction, special=True)


@pytest.mark.parametrize("logarithm", [False, True], ids=["softmax", "log_softmax"])
def test_softmax(any_machine, logarithm):
    short = [(1, 1), (9, 10), (5, 33), (3, 512), (3, 513), (3, 1000), (3, 1024), (2, 1025), (2, 1028)]
    odd = [(3, 257), (3, 1023), (2, 4097), (1, 24581), (1, 40001), (2, 65537)]
    for shape in [*short, *odd, (2, 4096), (2, 4100), (1, 12292), (1, 24580), (1, 58096), (2, 58100), (1, 131076)]:
        checks.check_softmax(any_machine, shape, logarithm=logarithm)
        checks.check_softmax(any_machine, shape, logarithm=logarithm, special=True)
    for shape in [(3, 7, 5), (2, 1030, 3), (2, 4100, 2)]:
        checks.check_softmax(any_machine, shape, dim=1, logarithm=logarithm)


@pytest.mark.parametrize("logarithm", [False, True], ids=["softmax", "log_softmax"])
def test_rows_beyond_the_shared_memory_of_a_block(any_machine, logarithm):
    """And, without clusters or of more columns than a cluster holds, beyond any."""
    clusters = [(8, 458752), (8, 458753), (1, 58100), (1, 58101)]
    for most_cluster, columns in clusters:
        any_machine.runner.set_most_cluster(most_cluster)
        before = machines.launches_of(any_machine.runner)
        checks.check_softmax(any_machine, (1, columns), logarithm=logarithm)
        launched = machines.launches_of(any_machine.runner) - before
        found = any("ClusterRow" in name for name in launched)
        assert found == (most_cluster > 1 and columns <= 458752), launched
    any_machine.runner.set_most_cluster(8)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(any_machine, reduction, smoothing, weighted):
    for shape in [(1, 1), (9, 10), (5000, 2), (3, 1024), (3, 1500), (3, 5001), (3, 333), (2, 7, 5), (2, 4100, 2)]:
        checks.check_cross_entropy(any_machine, shape, reduction, weighted, smoothing)
    checks.check_cross_entropy(any_machine, (20, 30), reduction, weighted, smoothing, special=True)
    checks.check_cross_entropy(any_machine, (20, 32), reduction, weighted, smoothing, special=True)
    checks.check_cross_entropy(any_machine, (1, 20480), reduction, weighted, smoothing)
    checks.check_cross_entropy(any_machine, (2, 58372), reduction, weighted, smoothing)
    checks.check_cross_entropy(any_machine, (1, 65537), reduction, weighted, smoothing)


def test_inputs_that_begin_between_groups_of_elements(any_machine):
    """All else is aligned."""
    memory = any_machine.memory
    memory.put = lambda t: None if t is None else memory.copy(torch.cat([t.flatten(), t.new_zeros(1)])).address
    for columns in (64, 1024, 1028, 24580):
        checks.check_softmax(any_machine, (2, columns), special=True)
        checks.check_cross_entropy(any_machine, (2, columns), weighted=True, smoothing=0.1)
        checks.check_cross_entropy(any_machine, (2, columns), probabilities=True)
    for loss in LOSSES:
        checks.check_elementwise_loss(any_machine, loss, (8, 640), "mean", weighted=True)
        checks.check_elementwise_loss(any_machine, loss, (8, 640), "none")
    checks.check_sgd(any_machine, [4, 1024, 3, 4096])
    checks.check_adam(any_machine, [4, 1024, 3, 4096], amsgrad=True)
    checks.check_activation(any_machine, "gelu", 4096)


def test_class_indices_out_of_range_stop_the_kernel(any_machine):
    for target in (-1, 3):
        with pytest.raises(RuntimeError, match="class_indices_kernel.*expected class indices in"):
            ops.cross_entropy(any_machine, torch.zeros(4, 3), torch.tensor([0, 1, target, 2]))


@pytest.mark.parametrize("special", [False, True])
def test_optimisers_update_every_tensor_of_a_long_list(any_machine, special):
    sizes = [1, 0, 1023, 1024, 1025, 5000, *[3] * 150]
    checks.check_sgd(any_machine, sizes, special=special)
    checks.check_sgd(any_machine, sizes[:6], momentum=0, nesterov=False, weight_decay=0, special=special)
    checks.check_adam(any_machine, sizes, special=special)
    for decoupled in (False, True):
        checks.check_adam(any_machine, sizes[:6], decoupled=decoupled, amsgrad=True, special=special)


def test_a_read_beyond_an_array_is_noticed(any_machine):
    put = any_machine.memory.put
    any_machine.memory.put = lambda t: put(t[..., :-1, :]) if t is not None and t.dim() > 1 else put(t)
    with pytest.raises(RuntimeError, match="product_kernel.*thread.*protected memory"):
        ops.product(any_machine, torch.ones(3, 4), torch.ones(4, 5))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("diverged_barrier", "deadlock: 16 threads wait at __syncthreads, 16 for other lanes"),
        ("shuffle_from_ended_lane", "has ended"),
        ("shuffle_from_absent_lane", "reads lane 31, which takes no part"),
        ("too_many_threads", "cannot be launched"),
    ],
)
def test_the_emulator_names_what_a_device_would_leave_undefined(any_machine, case, message):
    assert getattr(any_machine.runner, case)() != 0
    assert message in any_machine.runner.emulator_error().decode()


@pytest.mark.parametrize("fault", ["missing_barrier", "missing_wait"])
def test_a_race_gives_another_result_backwards(fault):
    results = []
    for backwards in (False, True):
        x, y = (ctypes.c_int * 64)(*range(1, 65)), (ctypes.c_int * 64)()
        compiled_runner(torch.float32).emulator_reverse(backwards)
        assert getattr(compiled_runner(torch.float32), fault)(*[x] * (fault == "missing_wait"), y) == 0
        results.append(list(y))
    assert results[0] != results[1]
