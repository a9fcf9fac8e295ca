"""Training steps in one launch, in the emulator: the bits of the CPU's loop, for every number of blocks."""

import pytest
import torch
from emulator import machines, steps
from test_cuda_emulated import compiled_runner, pytestmark  # noqa: F401

import pytorch_ext.nn as nn
from pytorch_ext import optim


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def machine(request):
    return machines.Emulator(compiled_runner(torch.float32), torch.float32, request.param)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_small_models(machine, blocks):
    steps.small(machine, blocks)


def three_layers(blocks, backwards=False):
    """Two steps of three layers: their losses and weights are those of the loop, or AssertionError."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10, activation="relu"), nn.Linear(10, 12, activation="silu"), nn.Linear(12, 5))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    inputs, targets = torch.randn(10, 6), torch.randint(5, (10,))
    machine = machines.Emulator(compiled_runner(torch.float32), torch.float32, backwards)
    steps.check_train_steps(machine, model, nn.CrossEntropyLoss(), optimizer, inputs, targets, [5, 5], blocks)


BARRIERS = 6  # of a cluster in each step: three layers, the loss, the gradients of two layers


@pytest.mark.parametrize("barrier", [*range(2 * BARRIERS), None])
def test_every_barrier_of_a_cluster_is_needed(barrier):
    """Without one there is another result, forwards or backwards."""
    runner, failures = compiled_runner(torch.float32), 0
    for backwards in (False, True):
        runner.emulator_leave_out(-1 if barrier is None else barrier)
        try:
            three_layers(2, backwards)
        except (AssertionError, RuntimeError):
            failures += 1
        finally:
            runner.emulator_leave_out(-1)
    assert bool(failures) == (barrier is not None)


def test_a_class_index_out_of_range_stops_the_steps(machine):
    model = nn.Sequential(nn.Linear(6, 4))
    args = model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), torch.randn(3, 6)
    with pytest.raises(RuntimeError, match="train_steps_kernel.*expected class indices in"):
        steps.check_train_steps(machine, *args, torch.tensor([0, 4, 1]), [3], 2)
