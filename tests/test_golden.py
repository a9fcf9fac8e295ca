"""Whole trainings end in the same weights on every path: the hashes of golden.py."""

import os

import pytest
import torch
from conftest import instruction_sets, needs_native
from golden import HASHES, train

from pytorch_ext import native

LONG = {"classifier": (1, 5, 20, 500), "wide_classifier": (1, 5), "regression": (1, 5, 20), "binary": (1, 5, 20)}


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", instruction_sets())
def test_training_ends_in_the_recorded_weights(isa, threads, capsys):
    before, threads_before = native.library.capability(), torch.get_num_threads()
    try:
        native.library.set_capability(isa)
        torch.set_num_threads(threads)
        found = {name: train(name, steps) for name, steps in LONG.items()}
        ran = native.library.capability(), torch.get_num_threads()
    finally:
        native.library.set_capability(before)
        torch.set_num_threads(threads_before)
    with capsys.disabled():
        print(f"\n784-128-10, batch 300, 500 steps on {ran[0]}, {ran[1]} threads: {found['classifier'][500]}", end="")
    assert ran == (isa, threads)
    assert found == HASHES


@needs_native
@pytest.mark.skipif("PYTORCH_EXT_CPU_CAPABILITY" in os.environ, reason="an instruction set was asked for by hand")
def test_the_best_instruction_set_is_the_default():
    assert native.library.capability() == instruction_sets()[-1]
