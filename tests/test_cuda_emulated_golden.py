"""Whole trainings with the emulated CUDA launchers for kernels end in the recorded weights."""

import pytest
import torch
from emulator import machines
from emulator.native import emulated
from golden import HASHES, train
from test_cuda_emulated import compiled_runner, pytestmark  # noqa: F401

MOST_STEPS = 20  # a step takes up to 0.3 s


def ran():
    return machines.launches_of(compiled_runner(torch.float32))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", HASHES)
def test_training_ends_in_the_recorded_weights(name, backwards, capsys):
    wanted = {steps: h for steps, h in HASHES[name].items() if steps <= MOST_STEPS}
    before = ran()
    with emulated(lambda: machines.Emulator(compiled_runner(torch.float32), torch.float32, backwards)):
        found = train(name, tuple(wanted))
    launched = ran() - before
    with capsys.disabled():
        print(f"\n{name}, {max(wanted)} steps: {len(launched)} CUDA kernels, {launched.total()} launches emulated")
    assert found == wanted
    assert launched.total() >= 6 * max(wanted)
