"""Training steps in one launch, in the emulator: the bits of the CPU's loop, for every number of blocks."""

import pytest
import torch
from emulator import machines, steps
from test_cuda_emulated import compiled_runner, pytestmark  # noqa: F401


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def machine(request):
    return machines.Emulator(compiled_runner(torch.float32), torch.float32, request.param)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_small_models(machine, blocks):
    steps.small(machine, blocks)
