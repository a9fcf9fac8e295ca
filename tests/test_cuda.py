"""The CUDA kernels on a device: the CPU's bits, gradients, streams, graphs, errors, and more than 2^31 elements.

Without a device the comparisons run on the CPU alone, so that what they compare is known to compute.
"""

import math
import subprocess
import sys

import op_cases
import pytest
import torch
from accuracy import assert_same_bits
from conftest import has_cuda, needs_cuda, needs_native
from golden import HASHES, train

import pytorch_ext.functional as F
from pytorch_ext import native, nn, optim

DEVICE = torch.device("cuda:0" if has_cuda else "cpu")
pytestmark = needs_native


def free_bytes():
    return torch.cuda.mem_get_info()[0] if has_cuda else 0


@needs_cuda
def test_the_self_test_passes_on_the_device():
    assert native.library.self_test(str(DEVICE)) == ""
    assert native.library.self_test_hashes(str(DEVICE)) == native.library.self_test_hashes("cpu")
    assert native.library.has_kernels(torch.empty(0, device=DEVICE))


@pytest.mark.parametrize("op", op_cases.OPS)
def test_float32_has_the_bits_of_the_cpu(op):
    on_cpu, on_device = op_cases.run(op, torch.device("cpu")), op_cases.run(op, DEVICE)
    assert on_device.keys() == on_cpu.keys() and len(on_cpu) > 3
    for name, tensors in on_device.items():
        for i, (ours, expected) in enumerate(zip(tensors, on_cpu[name], strict=True)):
            assert ours.device == DEVICE
            assert_same_bits(ours, expected, f"result {i} of {op} {name}")


def assert_bits_of_the_cpu(function, *inputs):
    """Of the output and of the gradients of its square's sum."""
    found = []
    for device in (torch.device("cpu"), DEVICE):
        leaves = [t.to(device).detach().requires_grad_(t.is_floating_point()) for t in inputs]
        y = function(*leaves)
        y.backward(y.detach())
        found.append([y, *(t.grad for t in leaves if t.requires_grad)])
    for i, (expected, ours) in enumerate(zip(*found, strict=True)):
        assert_same_bits(ours, expected, f"result {i}")


@pytest.mark.parametrize("columns", [300, 1023, 5001, 30001, 50257, 65537, 131072])
def test_long_and_odd_rows_have_the_bits_of_the_cpu(columns):
    x, target = torch.randn(3, columns), torch.tensor([1, columns - 1, -100])
    for op in (F.softmax, F.log_softmax):
        assert_bits_of_the_cpu(lambda x, op=op: op(x, 1), x)
        assert_bits_of_the_cpu(lambda x, op=op: op(x[:, 1:], 1), x)
    assert_bits_of_the_cpu(F.cross_entropy, x, target)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("heads", "queries", "keys"), [(40, 300, 300), (40, 128, 1000), (3, 100, 2000), (2, 40, 3000)])
def test_attention_has_the_bits_of_the_cpu_whatever_fits_shared_memory(heads, queries, keys, is_causal):
    q, k, v = torch.randn(heads, queries, 64), torch.randn(heads, keys, 64), torch.randn(heads, keys, 72)
    assert_bits_of_the_cpu(lambda *t: F.scaled_dot_product_attention(*t, is_causal=is_causal), q, k, v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", op_cases.OPS)
def test_other_dtypes_agree_with_the_cpu(op, dtype):
    on_cpu, on_device = op_cases.run(op, torch.device("cpu"), dtype), op_cases.run(op, DEVICE, dtype)
    for name, tensors in on_device.items():
        for i, (ours, expected) in enumerate(zip(tensors, on_cpu[name], strict=True)):
            scale = expected.abs().max().item() if expected.numel() else 1.0
            tolerance = 64 * torch.finfo(dtype).eps * max(scale, 1e-30)
            difference = (ours.cpu().double() - expected.double()).abs().max().item() if expected.numel() else 0.0
            assert ours.dtype == expected.dtype
            assert difference <= tolerance, f"result {i} of {op} {name}: {difference} of {scale}"


@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "mse_loss", "gelu", "linear", "matmul", "attention"])
def test_first_and_second_derivatives_match_finite_differences(name):
    x, w = (torch.randn(5, 6, dtype=torch.float64, device=DEVICE).requires_grad_() for _ in range(2))
    target = torch.arange(5, device=DEVICE)
    calls = {
        "softmax": (lambda x: F.softmax(x, 1), (x,)),
        "cross_entropy": (lambda x: F.cross_entropy(x, target), (x,)),
        "mse_loss": (F.mse_loss, (x, w)),
        "gelu": (F.gelu, (x,)),
        "linear": (lambda x, w: F.linear(x, w, activation="tanh").square().sum(), (x, w)),
        "matmul": (lambda x, w: F.matmul(x, w.T), (x, w)),
        "attention": (lambda x, w: F.scaled_dot_product_attention(x, w, x * w, is_causal=True), (x, w)),
    }
    function, inputs = calls[name]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@needs_cuda
@pytest.mark.parametrize("name", HASHES)
def test_training_on_the_device_ends_in_the_recorded_weights(name):
    assert train(name, tuple(HASHES[name]), device=DEVICE) == HASHES[name]


@needs_cuda
def test_kernels_run_on_the_current_stream():
    x = torch.randn(2000, 2000, device=DEVICE)
    expected = F.softmax(F.matmul(x, x), 1)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            y = x.clone()  # behind the sleep: a kernel on another stream would read garbage
            found.append(F.softmax(F.matmul(y, y), 1))
    torch.cuda.synchronize()
    for y in found:
        assert_same_bits(y, expected)


@needs_cuda
def test_a_training_step_is_captured_as_a_graph():
    def build():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(784, 128, activation="relu"), nn.Linear(128, 10)).to(DEVICE)
        return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    x = torch.randn(64, 784, device=DEVICE)
    y = torch.randint(10, (64,), device=DEVICE)

    def step(model, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    eager = build()
    for _ in range(6):
        step(*eager)
    captured = build()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*captured)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(captured[0].parameters(), eager[0].parameters(), strict=True):
        assert_same_bits(ours.detach(), expected.detach())


@needs_cuda
def test_capturing_adam_s_step_is_refused_as_stock_refuses_it():
    param = torch.ones(3, device=DEVICE, requires_grad=True)
    param.grad = torch.ones(3, device=DEVICE)
    optimizer = optim.Adam([param])
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@needs_cuda
def test_tensors_on_different_devices_are_named():
    x, w = torch.ones(2, 3, device=DEVICE), torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="linear: expected .*cuda:0"):
        F.linear(x, w)


@needs_cuda
@pytest.mark.skipif("torch.cuda.device_count() < 2")
def test_kernels_run_on_the_device_of_their_tensors():
    x = torch.randn(50, 50)
    second = F.softmax(x.to("cuda:1"), 1)
    assert second.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    assert_same_bits(second, F.softmax(x, 1))


@needs_cuda
def test_a_class_index_out_of_range_stops_the_device():
    program = (
        "import torch, pytorch_ext.functional as F\n"
        "F.cross_entropy(torch.randn(2, 3, device='cuda'), torch.tensor([0, 3], device='cuda'))\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0 and "CUDA error" in done.stderr


@needs_cuda
def test_memory_that_is_not_there_is_torch_s_own_error():
    x = torch.empty(1, 1, device=DEVICE).expand(2**20, 2**21)
    with pytest.raises(torch.OutOfMemoryError):
        F.softmax(x, 1)
    assert F.softmax(torch.zeros(2, 2, device=DEVICE), 1).tolist() == [[0.5, 0.5]] * 2


@needs_cuda
@pytest.mark.skipif("free_bytes() < 60e9", reason="it takes 60 GB of memory")
def test_more_than_two_to_the_31_elements():
    rows, columns = 2**16 + 1, 2**15 + 8
    assert rows * columns > 2**31
    x = torch.randn(rows, columns, device=DEVICE).requires_grad_()
    target = torch.randint(columns, (rows,), device=DEVICE)
    last = slice(rows - 3, rows)
    y = F.softmax(x, 1)
    assert_same_bits(y[last].detach(), F.softmax(x[last].detach().cpu(), 1))
    del y
    loss = F.cross_entropy(x, target, reduction="sum")
    loss.backward()
    tail = x[last].detach().cpu().requires_grad_()
    F.cross_entropy(tail, target[last].cpu(), reduction="sum").backward()
    assert_same_bits(x.grad[last], tail.grad)
    assert math.isfinite(loss.item())
    x.grad = None
    relu = F.relu(x)
    assert_same_bits(relu[last].detach(), F.relu(x[last].detach().cpu()))


@needs_cuda
def test_autocast_has_stock_s_dtypes():
    x, w = torch.randn(8, 16, device=DEVICE), torch.randn(4, 16, device=DEVICE)
    target = torch.arange(4, device=DEVICE).repeat(2)
    with torch.autocast("cuda", torch.bfloat16):
        y = F.linear(x, w, activation="relu")
        assert y.dtype == torch.bfloat16 and F.cross_entropy(y, target).dtype == torch.float32
        assert F.softmax(y, 1).dtype == torch.float32
    torch.testing.assert_close(y, torch.relu(x.bfloat16() @ w.bfloat16().T))


@needs_cuda
def test_compiled_without_graph_breaks():
    x, w = torch.randn(8, 16, device=DEVICE), torch.randn(4, 16, device=DEVICE).requires_grad_()

    def call(x, w):
        return F.softmax(F.linear(x, w, activation="relu"), 1).square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(call(x, w), w)
    assert_same_bits(torch.autograd.grad(compiled(x, w), w)[0], expected[0])


@needs_cuda
def test_tf32_products_are_left_to_torch():
    x = torch.randn(256, 256, device=DEVICE)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        stock = torch.matmul(x, x)
        assert_same_bits(F.matmul(x, x), stock)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert not torch.equal(F.matmul(x, x), stock)
