"""Losses whose forward pass leaves gradients for `loss.backward()`: whatever that is given, its bits."""

import contextlib
import subprocess
import types

import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_cuda, needs_interpreter, needs_native, needs_triton_on_cuda
from emulator import machines
from emulator.native import emulated
from test_cuda_emulated import compiled_runner

import pytorch_ext
import pytorch_ext.functional as F
from pytorch_ext.triton_path import kernels

pytestmark = pytest.mark.usefixtures("one_thread")

GRADS = [(1.0, 1.0), (1.0, 0.7), (0.7, 1.0), (0.7, -3.0)]


def cases(device="cpu"):
    """{name: (loss, leaves)}"""
    x, y = (torch.randn(9, 30, device=device) for _ in range(2))
    indices, w = torch.randint(30, (9,), device=device), torch.rand(30, device=device)
    indices[::4] = -100
    distribution, smoothed = torch.softmax(y, 1), {"weight": w, "label_smoothing": 0.1}
    calls = {
        "cross_entropy of indices": (lambda x: F.cross_entropy(x, indices), x),
        "cross_entropy, smoothed, weighted": (lambda x: F.cross_entropy(x, indices, reduction="sum", **smoothed), x),
        "cross_entropy of probabilities": (lambda x, y: F.cross_entropy(x, y, **smoothed), x, distribution),
        "cross_entropy of a sequence": (lambda x: F.cross_entropy(x, indices.view(3, 3) % 10), x[:3].view(3, 10, 3)),
        "nll_loss": (lambda x: F.nll_loss(x, indices, w), x),
        "mse_loss": (F.mse_loss, x, y),
        "mse_loss, weighted": (lambda x, y: F.mse_loss(x, y, weight=w.expand(9, 30).contiguous()), x, y),
        "binary_cross_entropy": (F.binary_cross_entropy, torch.sigmoid(x), torch.sigmoid(y)),
        "binary_cross_entropy_with_logits": (
            lambda x, y: F.binary_cross_entropy_with_logits(x, y, w, pos_weight=w + 1, reduction="sum"),
            x,
            y,
        ),
    }
    return {name: (loss, [t.clone().requires_grad_() for t in leaves]) for name, (loss, *leaves) in calls.items()}


NAMES = list(cases())


def computed_anew(loss, leaves, grad):
    """A differentiable backward pass takes nothing that the forward pass left."""
    return torch.autograd.grad(loss(*leaves), leaves, torch.tensor(grad, device=leaves[0].device), create_graph=True)


def check_both(loss, leaves, first, second):
    value = loss(*leaves)
    for grad, retain in ((first, True), (second, False)):
        found = torch.autograd.grad(value, leaves, torch.tensor(grad, device=value.device), retain_graph=retain)
        for ours, expected in zip(found, computed_anew(loss, leaves, grad), strict=True):
            assert_same_bits(ours, expected.detach(), f"gradient for {grad}")
            ours.fill_(5)  # who received it owns it


@pytest.mark.parametrize("grads", GRADS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_retained_graph_goes_backward_with_any_gradients(path, name, grads):
    check_both(*cases(path)[name], *grads)


@needs_native
@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("nll_loss", "mse_loss, weighted") and "logits" not in n]
)
def test_the_kernels_of_a_device_write_over_what_the_forward_pass_left(name):
    loss, leaves = cases()[name]
    runner = compiled_runner(torch.float32)
    expected = [t.detach() for t in computed_anew(loss, leaves, 0.7)]
    before = machines.launches_of(runner)
    with emulated(lambda: machines.Emulator(runner, torch.float32)):
        found = torch.autograd.grad(loss(*leaves), leaves, torch.tensor(0.7))
    for ours, wanted in zip(found, expected, strict=True):
        assert_same_bits(ours, wanted)
    assert (machines.launches_of(runner) - before).total() >= 2


def assert_replays_follow(grad, graph, found, loss, leaves):
    """Every replay finds the gradients for the number in ``grad``, whatever became of the last replay's."""
    for number in (1.0, 0.7, 1.0):
        grad.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        for ours, expected in zip(found, computed_anew(loss, leaves, number), strict=True):
            assert_same_bits(ours, expected.detach())
            ours.fill_(5)


@pytest.fixture(params=[pytest.param("native", marks=needs_cuda), pytest.param("triton", marks=needs_triton_on_cuda)])
def on_device(request):
    with pytorch_ext.backend(request.param):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_backward_pass_is_recorded_alone_and_replayed_with_other_gradients(on_device, name):
    """The buffer that the forward pass left belongs to none of the replays."""
    loss, leaves = cases("cuda")[name]
    grad, stream = torch.ones((), device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value = loss(*leaves)
        torch.autograd.grad(loss(*leaves), leaves, grad)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = torch.autograd.grad(value, leaves, grad, retain_graph=True)
    assert_replays_follow(grad, graph, found, loss, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_pass_are_recorded_together(on_device, name):
    loss, leaves = cases("cuda")[name]
    grad, stream = torch.ones((), device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(loss(*leaves), leaves, grad)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = torch.autograd.grad(loss(*leaves), leaves, grad)
    assert_replays_follow(grad, graph, found, loss, leaves)


@needs_native
def test_arrays_that_no_forward_pass_has_left_are_refused():
    x, one = torch.randn(4, 3), torch.tensor(1.0)
    elementwise = torch.ops.pytorch_ext.elementwise_loss_backward_into
    for wrong in (torch.empty(3, 4), torch.empty(3, 4).T):
        with pytest.raises(
            RuntimeError, match=r"elementwise_loss_backward_into: expected dinput \[4, 3\], contiguous, got"
        ):
            elementwise(one, wrong, None, x, x, None, None, "mse_loss", 1)
        with pytest.raises(RuntimeError, match="cross_entropy_backward_into: expected dinput as cross_entropy_forward"):
            torch.ops.pytorch_ext.cross_entropy_backward_into(
                one, wrong, x, torch.tensor([0, 1, 2, 0]), None, 1, -100, 0.0
            )
    with pytest.raises(RuntimeError, match="expected reduction 1 or 2, got 0"):
        elementwise(x, torch.empty(4, 3), None, x, x, None, None, "mse_loss", 0)


# ---- Triton ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def interpreted():
    with pytorch_ext.backend("triton"):
        yield


IN_ADVANCE = [name for name in NAMES if name != "nll_loss"]


@needs_interpreter
@pytest.mark.parametrize("name", IN_ADVANCE)
def test_a_kernel_that_finds_a_1_leaves_what_it_finds(interpreted, monkeypatch, name):
    """As on a device, where nobody else looks."""
    loss, leaves = cases()[name]
    monkeypatch.setattr("pytorch_ext.ops.one_pass.is_one", lambda grad: False)
    for number in (1.0, 0.7):
        value = loss(*leaves)
        left = [g for g in value.grad_fn.in_advance.gradients if g is not None]
        for g in left:
            g.fill_(5)
        found = torch.autograd.grad(value, leaves, torch.tensor(number))
        expected = [t.detach() for t in computed_anew(loss, leaves, number)]
        for i, g in enumerate(found):
            if number == 1.0 and any(g is buffer for buffer in left):
                assert (g == 5).all(), f"gradient {i}"
            else:
                assert_same_bits(g, expected[i], f"gradient {i}")
        assert any(g is buffer for g in found for buffer in left)


@needs_interpreter
def test_the_logits_are_read_once_where_the_loss_s_gradient_is_1(interpreted, launched):
    x, labels = torch.randn(5, 7, requires_grad=True), torch.arange(5)
    F.cross_entropy(x, labels).backward()
    F.mse_loss(x, torch.zeros(5, 7)).backward()
    assert (launched["cross_entropy_kernel"], launched["elementwise_loss_kernel"]) == (1, 1)
    F.cross_entropy(x, labels).backward(torch.tensor(2.0))
    F.mse_loss(x, torch.zeros(5, 7)).backward(torch.tensor(2.0))
    assert (launched["cross_entropy_kernel"], launched["elementwise_loss_kernel"]) == (3, 3)


@needs_interpreter
@pytest.mark.parametrize("captures", [(0, 3), (3, 0), (3, 4), (3, 3)], ids=str)
def test_what_another_graph_has_left_is_not_taken(interpreted, monkeypatch, captures):
    forward, backward = captures
    for name in IN_ADVANCE:
        loss, leaves = cases()[name]
        monkeypatch.setattr(kernels.launch, "capture_number", lambda device: forward)
        value = loss(*leaves)
        monkeypatch.setattr(kernels.launch, "capture_number", lambda device: backward)
        left = [g for g in value.grad_fn.in_advance.gradients if g is not None]
        for g in left:
            g.fill_(5)
        found = torch.autograd.grad(value, leaves)
        assert any(g is buffer for g in found for buffer in left) == (forward == backward)
        if forward != backward:
            for ours, expected in zip(found, computed_anew(loss, leaves, 1.0), strict=True):
                assert_same_bits(ours, expected.detach())


@needs_interpreter
def test_hooks_may_return_what_is_saved_with_other_strides(interpreted):
    loss, (x,) = cases()["cross_entropy of a sequence"]
    x = x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()  # the classes are neighbours
    expected = computed_anew(loss, [x], 0.7)[0].detach()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        value = loss(x)
    assert_same_bits(torch.autograd.grad(value, x, torch.tensor(0.7))[0], expected)


DRIVER = """
int cuStreamGetCaptureInfo_v2(void *stream, int *status, unsigned long long *number, void *graph, void *nodes,
                              void *count) {
  *status = 1;
  *number = (unsigned long long)stream + 40;
  return graph || nodes || count || stream == (void *)7;
}
"""


@needs_interpreter
@pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler")
def test_the_number_of_a_capture_is_the_driver_s(monkeypatch, tmp_path):
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(DRIVER)
    subprocess.run([machines.compiler(), "-x", "c", "-shared", "-fPIC", source, "-o", library], check=True)
    monkeypatch.setattr(kernels.launch, "DRIVER", str(library))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    stream, device = types.SimpleNamespace(cuda_stream=2), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    for capturing, number in ((False, 0), (True, 43)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert kernels.launch.capture_number(device) == number
    assert kernels.launch.capture_number(torch.device("cpu")) == 0
    stream.cuda_stream = 7
    with pytest.raises(RuntimeError, match="capture_number: expected the number of a capture, got the driver's error"):
        kernels.launch.capture_number(device)
