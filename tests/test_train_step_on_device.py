"""TrainStep on a device: the CPU's bits, the recorded weights, the current stream, nobody who waits.

These tests need a card, or a process whose native library runs on an emulated one, which
tests/test_cuda_emulated_train_step.py starts.
"""

import contextlib
import itertools

import golden
import pytest
import torch
from conftest import has_cuda, needs_native
from test_train_step import CASES, adam, assert_all_same_bits, batches_of, mlp, ns, sgd, tensors_of, trained
from torch.utils.data import DataLoader, TensorDataset

from pytorch_ext import TrainStep

emulator = torch.ops.pytorch_ext_emulator
IS_EMULATED = hasattr(emulator, "waits")
pytestmark = [
    needs_native,
    pytest.mark.skipif(not has_cuda and not IS_EMULATED, reason="there is no CUDA device, nor an emulated one"),
]
needs_emulator = pytest.mark.skipif(not IS_EMULATED, reason="only the emulator tells")


def place(t):
    return t.cuda()


@contextlib.contextmanager
def nobody_waits():
    """Nothing in the `with` block waits for the device."""
    if IS_EMULATED:
        before = emulator.waits()
        yield
        assert emulator.waits() == before
    else:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def side_stream():
    """Another current stream than the default one, which no graph can be captured on."""
    if IS_EMULATED:
        emulator.set_stream(7)
        yield
        emulator.set_stream(0)
    else:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def captured():
    """Captures what the block launches; yields a function that launches the graph."""
    if IS_EMULATED:
        emulator.begin_capture()
        yield emulator.replay
        emulator.end_capture()
    else:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            yield graph.replay


def by_graphs(*objects, **options):
    """A TrainStep that never makes one launch of a step."""
    step = TrainStep(*objects, **options)
    step._native.exact_blocks = -1
    return step


def on_cpu(tensors):
    return {name: t.cpu().clone() for name, t in tensors.items()}


@pytest.mark.parametrize("name", golden.HASHES)
def test_training_ends_in_the_recorded_weights(name):
    hashes = {n: value for n, value in golden.HASHES[name].items() if n <= 20 or not IS_EMULATED}
    assert golden.train_by_step(name, hashes, place) == hashes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_it_has_the_bits_of_the_cpu(case, dtype):
    ours = on_cpu(trained(TrainStep, case, dtype, count=14, place=place))
    theirs = trained(TrainStep, case, dtype, count=14)
    if dtype == torch.float32:
        return assert_all_same_bits(ours, theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.detach(), rtol=1e-11, atol=1e-13, equal_nan=True)


def on_device(batches):
    return [tuple(map(place, batch)) for batch in batches]


@pytest.mark.parametrize("case", ["relu, cross entropy, Adam", "log_softmax, NLL, dampening", "dropout", "clipped"])
def test_nobody_waits_for_a_step(case):
    model_of, loss, target, optimizer_of, options = CASES[case]
    model = model_of()._apply(place)
    step = TrainStep(model, loss, optimizer_of(model), **options)
    batches = on_device(batches_of((12,), target, count=14))
    before = on_cpu(tensors_of(model, step.optimizer))
    with nobody_waits():
        losses = [step(x, y) for x, y in batches]
    assert all(loss.is_cuda and loss.dim() == 0 and loss.cpu() != 0 for loss in losses)
    after = on_cpu(tensors_of(model, step.optimizer))
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def test_run_waits_once_an_epoch_at_most(monkeypatch):
    if IS_EMULATED:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t)  # torch would ask a real device
    inputs, targets = torch.rand(40, 12), torch.randint(4, (40,))
    trained = []
    for put in (place, lambda t: t):
        torch.manual_seed(3)
        model = mlp()._apply(put)
        step = TrainStep(model, ns.CrossEntropyLoss(), adam(model))
        loader = DataLoader(TensorDataset(put(inputs), put(targets)), batch_size=16, shuffle=True)
        if put is place and IS_EMULATED:
            before = emulator.waits()
            means = step.run(loader, epochs=3)
            assert emulator.waits() - before <= 3
        else:
            means = step.run(loader, epochs=3)
        trained.append((means, on_cpu(tensors_of(model, step.optimizer))))
    assert trained[0][0] == pytest.approx(trained[1][0])
    assert_all_same_bits(trained[0][1], trained[1][1])


@pytest.mark.parametrize("what", ["input", "target"])
def test_a_batch_on_another_device_is_refused(what):
    model = mlp()._apply(place)
    step = TrainStep(model, ns.CrossEntropyLoss(), sgd(model))
    before = on_cpu(tensors_of(model, step.optimizer))
    x, y = torch.rand(5, 12), torch.randint(4, (5,))
    with pytest.raises(RuntimeError, match=f"TrainStep: expected {what} .*cuda:0, got .*cpu"):
        step(*((x, place(y)) if what == "input" else (place(x), y)))
    assert_all_same_bits(on_cpu(tensors_of(model, step.optimizer)), before)


@needs_emulator
@pytest.mark.parametrize("case", ["relu, cross entropy, Adam", "three batches a step, clipped"])
def test_kernels_run_on_the_current_stream(case):
    expected = on_cpu(trained(TrainStep, case, count=14, place=place))
    try:
        for streams in ([0], [7], [0, 7, 7, 7, 3]):
            turns = itertools.cycle(streams)

            def put(t, turns=turns):
                emulator.set_stream(next(turns))
                return place(t)

            ours = on_cpu(trained(TrainStep, case, count=14, place=put))
            assert_all_same_bits(ours, expected)
    finally:
        emulator.set_stream(0)
    assert emulator.launches_elsewhere() == 0


@needs_emulator
@pytest.mark.parametrize(("make", "op"), [(TrainStep, "TrainStep"), (by_graphs, "cross_entropy")])
def test_a_class_index_out_of_range_stops_the_device(make, op):
    model = mlp()._apply(place)
    step = make(model, ns.CrossEntropyLoss(), sgd(model))
    with pytest.raises(RuntimeError, match=f"{op}: CUDA error .*class indices in"):
        step(place(torch.rand(3, 12)), place(torch.tensor([0, 4, 1])))
