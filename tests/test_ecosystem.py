"""A converted model under torch's transforms, autocast, export, checkpointing, tracing and threads."""

import contextlib
import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from conftest import needs_native, on_cpu_paths
from converted import MODELS, made, output_of
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

import pytorch_ext
from pytorch_ext import native, optim


def pair(name):
    """(converted model, stock model, arguments)."""
    model, arguments = made(name)
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    return model, stock, arguments


def perceptron():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.LogSoftmax(-1))
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    return model, stock


# Of a function of all parameters and one sample.
TRANSFORMS = {
    "grad": lambda f, p, x: torch.func.grad(lambda p: f(p, x).square().sum())(p),
    "vmap": lambda f, p, x: torch.func.vmap(lambda row: f(p, row))(x),
    "vmap_of_grad": lambda f, p, x: torch.func.vmap(
        torch.func.grad(lambda p, row: f(p, row).square().sum()), in_dims=(None, 0)
    )(p, x),
    "jvp": lambda f, p, x: torch.func.jvp(lambda x: f(p, x), (x,), (torch.ones_like(x),)),
    "vjp": lambda f, p, x: torch.func.vjp(lambda x: f(p, x), x)[1](torch.ones(len(x), 2)),
    "jacrev": lambda f, p, x: torch.func.jacrev(lambda x: f(p, x))(x),
    "jacfwd": lambda f, p, x: torch.func.jacfwd(lambda x: f(p, x))(x),
    "hessian": lambda f, p, x: torch.func.hessian(lambda x: f(p, x).square().sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_functional_transform_gives_what_stock_gives(transform):
    model, stock = perceptron()
    x = torch.randn(5, 3)
    results = []
    for m in (model, stock):
        parameters = {name: p.detach() for name, p in m.named_parameters()}

        def call(p, x, m=m):
            return torch.func.functional_call(m, p, (x,))

        results.append(TRANSFORMS[transform](call, parameters, x))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_functional_call_uses_the_parameters_it_is_given():
    model, _, (x,) = pair("written")
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = copy.deepcopy(model)
    expected.load_state_dict(other)
    assert_same_bits(torch.func.functional_call(model, other, (x,)), expected(x))


def test_stacked_models_run_as_one():
    models = [perceptron()[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(5, 3)
    together = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize("name", ["sequential", "written", "attention", "encoder", "multihead"])
def test_autocast_gives_stock_s_dtypes(name):
    model, stock, arguments = pair(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = output_of(model, arguments), output_of(stock, arguments)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05)
    ours.float().sum().backward(), theirs.float().sum().backward()
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or p.grad.dtype == q.grad.dtype)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_grad_scaler_skips_a_step_that_overflowed_and_takes_the_others(optimizer):
    model, _ = perceptron()
    steps = getattr(optim, optimizer)(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    plain = copy.deepcopy(model)
    plain_steps = getattr(optim, optimizer)(plain.parameters(), lr=0.1)
    x = torch.randn(5, 3)
    for overflow in (False, True, False):
        steps.zero_grad(), plain_steps.zero_grad()
        scaler.scale(model(x).square().sum()).backward()
        plain(x).square().sum().backward()
        if overflow:
            model[0].weight.grad.fill_(float("inf"))
        else:
            plain_steps.step()
        scaler.step(steps)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same_bits(p, q)  # the scale is a power of two


@needs_native
@pytest.mark.parametrize("way", ["set_default_device", "with", "both"])
def test_a_default_device_leaves_the_kernels_their_work(way):
    """It is a function mode of torch's, about new tensors; other modes do decide what a call means."""
    model, _, arguments = pair("written")
    expected = model(*arguments)
    try:
        if way != "with":
            torch.set_default_device("cpu")
        with torch.device("cpu") if way != "set_default_device" else contextlib.nullcontext():
            assert_same_bits(model(*arguments), expected)
            explained = pytorch_ext.explain(model, arguments)
            with pytest.raises(RuntimeError, match="^linear: expected"):
                pytorch_ext.functional.linear(torch.ones(2, 3), torch.ones(2, 2))
            with torch.overrides.BaseTorchFunctionMode():
                watched = pytorch_ext.explain(model, arguments, backward=False)
    finally:
        torch.set_default_device(None)
    assert "linear, relu" in [row.op for row in explained if row.path == "native-cpu"]
    assert {row.path for row in watched} == {"stock"}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["sequential", "written", "attention"])
def test_export_gives_the_same_function_for_every_batch_size(name, strict):
    model, stock, (x,) = pair(name)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=strict)
    bigger = torch.cat([x, x, x])
    torch.testing.assert_close(program.module()(bigger), stock(bigger))


@pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_has_our_operators_and_onnx_gets_torch_s(monkeypatch, strict):
    from torch.onnx._internal.exporter import _flags

    def targets():
        model, _, arguments = pair("sequential")
        nodes = torch.export.export(model, arguments, strict=strict).graph.nodes
        return [str(node.target) for node in nodes if node.op == "call_function"]

    assert targets() == ["pytorch_ext.linear.default"] * 2
    monkeypatch.setattr(_flags, "_is_onnx_exporting", True)
    torch._dynamo.reset()
    assert targets() == ["aten.linear.default", "aten.relu.default", "aten.linear.default", "aten.gelu.default"]


def operations(model, *arguments, training):
    """What torch's counter counts."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        loss = model(*arguments).sum()
        if training:
            loss.backward()
    return counter.get_total_flops()


@needs_native
@pytest.mark.parametrize("training", [True, False])
@on_cpu_paths
def test_torchs_counter_of_operations_counts_ours_as_its_own(training):
    x = torch.randn(7, 3)
    last_layer = pytorch_ext.nn.LinearCrossEntropyLoss(3, 5)
    cases = [(*perceptron(), x), *(pair(name) for name in ("written", "attention", "image"))]
    for ours, stock, *arguments in cases:
        arguments = arguments[0] if isinstance(arguments[0], tuple) else arguments
        counts = [operations(m, *arguments, training=training) for m in (ours, stock)]
        assert counts[0] == counts[1] > 0
    products = 3 if training else 1
    target = torch.zeros(7, dtype=torch.int64)
    assert operations(last_layer, x.requires_grad_(), target, training=training) == products * 2 * 7 * 3 * 5


@needs_native
def test_torchs_counter_counts_attention():
    """Which torch's own kernel for the CPU has no formula for."""
    q, k, v = (torch.randn(2, 4, n, e, requires_grad=True) for n, e in ((5, 8), (6, 8), (6, 3)))

    def attend(*arguments):
        return pytorch_ext.functional.scaled_dot_product_attention(*arguments)

    scores = 2 * (2 * 4 * 5 * 6)
    assert operations(attend, q, k, v, training=False) == scores * (8 + 3)
    assert operations(attend, q, k, v, training=True) == scores * (8 + 3) + scores * (3 * 8 + 2 * 3)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_bit(use_reentrant):
    model, _, _ = pair("written")
    x = torch.randn(4, 8, requires_grad=True)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        assert_same_bits(p.grad, g)


def test_checkpointing_repeats_the_mask_of_dropout():
    model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5))])
    pytorch_ext.convert(model)
    x = torch.randn(4, 6, requires_grad=True)
    torch.manual_seed(5)
    model(x).sum().backward()
    expected = [x.grad.clone(), *[p.grad.clone() for p in model.parameters()]]
    model.zero_grad(), setattr(x, "grad", None)
    torch.manual_seed(5)
    checkpoint_sequential(model, 3, x, use_reentrant=False).sum().backward()
    for a, b in zip(expected, [x.grad, *[p.grad for p in model.parameters()]], strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("name", MODELS)
@on_cpu_paths
def test_inference_mode_and_no_grad_have_the_bits_of_training(name):
    model, _, arguments = pair(name)
    if name in ("tied", "encoder", "decoder", "multihead"):  # torch has operators of its own for their inference
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        expected = output_of(model, arguments)
        with torch.inference_mode():
            result = output_of(model, arguments)
        with torch.no_grad():
            assert_same_bits(output_of(model, arguments), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert result.is_inference()
    assert_same_bits(result, expected)


@pytest.mark.parametrize("name", ["sequential", "written", "attention", "image"])
@on_cpu_paths
def test_a_trace_has_the_bits_of_the_model_saved_and_loaded(name, tmp_path):
    model, _, arguments = pair(name)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, arguments)
        torch.jit.save(traced, tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
    for call in (traced, loaded):
        assert_same_bits(call(*arguments), model(*arguments))


def test_symbolic_tracing_gives_a_graph_of_stock_functions():
    model, stock, (x,) = pair("sequential")
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), stock(x))


@on_cpu_paths
def test_threads_train_models_of_their_own_as_one_thread_does():
    x = torch.randn(20, 3)

    def train(model):
        steps = optim.Adam(model.parameters(), lr=0.1)
        for _ in range(20):
            steps.zero_grad()
            F.nll_loss(model(x), torch.zeros(20, dtype=torch.long)).backward()
            steps.step()

    model, _ = perceptron()
    models = [copy.deepcopy(model) for _ in range(5)]
    train(models[0])
    threads = [threading.Thread(target=train, args=(m,)) for m in models[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in models[1:]:
        for p, q in zip(models[0].parameters(), other.parameters(), strict=True):
            assert_same_bits(p, q)


def test_double_backward_through_a_converted_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Sigmoid()).double()
    pytorch_ext.convert(model)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,)) and torch.autograd.gradgradcheck(model, (x,))


def test_utilities_of_torch_that_change_modules_still_work():
    model, stock, (x,) = pair("sequential")
    for m in (model, stock):
        prune.l1_unstructured(m[0], "weight", amount=0.5)
        nn.utils.parametrizations.spectral_norm(m[2])
    stock.load_state_dict(model.state_dict())
    model.eval(), stock.eval()
    torch.testing.assert_close(model(x), stock(x))
    pytorch_ext.revert(model)
    prune.remove(model[0], "weight")
    torch.testing.assert_close(model(x), stock(x))
