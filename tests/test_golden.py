"""Whole trainings end in the same weights on every path: the hashes of golden.py."""

import os

import pytest
import torch
from conftest import instruction_sets, needs_interpreter, needs_native, needs_triton_on_cuda
from golden import HASHES, TRAININGS, batches, train, weight_hash
from spec import linear, optimizers
from spec.losses_classification import cross_entropy

import pytorch_ext
from pytorch_ext import native

# A step takes the interpreter between a tenth of a second and five.
INTERPRETED_STEPS = {"classifier": 1, "wide_classifier": 1, "regression": 20, "binary": 20}


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", instruction_sets())
def test_training_ends_in_the_recorded_weights(isa, threads, capsys):
    before, threads_before = native.library.capability(), torch.get_num_threads()
    try:
        native.library.set_capability(isa)
        torch.set_num_threads(threads)
        found = {name: train(name, tuple(hashes)) for name, hashes in HASHES.items()}
        ran = native.library.capability(), torch.get_num_threads()
    finally:
        native.library.set_capability(before)
        torch.set_num_threads(threads_before)
    with capsys.disabled():
        print(f"\n784-128-10, batch 300, 500 steps on {ran[0]}, {ran[1]} threads: {found['classifier'][500]}", end="")
    assert ran == (isa, threads)
    assert found == HASHES


@needs_interpreter
@pytest.mark.parametrize("name", HASHES)
def test_interpreted_triton_kernels_end_in_the_recorded_weights(name):
    hashes = {step: value for step, value in HASHES[name].items() if step <= INTERPRETED_STEPS[name]}
    with pytorch_ext.backend("triton"):
        assert train(name, tuple(hashes)) == hashes


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("name", HASHES)
def test_twenty_steps_of_interpreted_triton_kernels_end_in_the_recorded_weights(name):
    hashes = {step: value for step, value in HASHES[name].items() if step <= 20}
    with pytorch_ext.backend("triton"):
        assert train(name, tuple(hashes)) == hashes


@needs_triton_on_cuda
@pytest.mark.parametrize("name", HASHES)
def test_triton_s_kernels_on_a_device_end_in_the_recorded_weights(name):
    with pytorch_ext.backend("triton"):
        assert train(name, tuple(HASHES[name]), device=torch.device("cuda")) == HASHES[name]


def test_the_specification_alone_ends_in_the_recorded_weights():
    """The same training in numpy, without a line of the package's kernels."""
    model, data, size, _, _ = TRAININGS["classifier"]()
    params = [p.detach().numpy() for p in model.parameters()]
    w1, b1, w2, b2 = params
    states = [{} for _ in params]
    for x, target in batches(*(t.numpy() for t in data), size, 1):
        y, _ = linear.forward(x, w1, b1, "relu")
        logits, _ = linear.forward(y, w2, b2)
        _, grad = cross_entropy(logits, target)
        grad, dw2, db2 = linear.backward(grad, y, w2, None)
        _, dw1, db1 = linear.backward(grad, x, w1, y, "relu")
        for param, g, state in zip(params, (dw1, db1, dw2, db2), states, strict=True):
            optimizers.adam(param, g, state, lr=1e-3)
    assert weight_hash(model) == HASHES["classifier"][1]


@needs_native
@pytest.mark.skipif("PYTORCH_EXT_CPU_CAPABILITY" in os.environ, reason="an instruction set was asked for by hand")
def test_the_best_instruction_set_is_the_default():
    assert native.library.capability() == instruction_sets()[-1]
