"""Tests of what nvcc makes of the CUDA kernels for one architecture and one dtype."""

import collections
import functools
import tempfile
from pathlib import Path

import pytest
import torch
from emulator import machines, ops, small, steps

from . import lint, nvcc
from .memory import Fault
from .parse import BITS, parse


@functools.cache
def compiled(architecture, dtype):
    """(kernels by name, their registers and bytes in local memory)"""
    with tempfile.TemporaryDirectory() as folder:
        text, usage = nvcc.compile_to_ptx(architecture, Path(folder), machines.storage_flags(dtype))
    return parse(text), usage


LAUNCHES = {}  # (architecture, dtype): {kernel: how often the interpreter has run it}


def launches(architecture, dtype):
    return LAUNCHES.setdefault((architecture, dtype), collections.Counter())


def _bits_written(instruction):
    """To global memory, at once."""
    name, *modifiers = instruction.opcode
    if name != "st" or "global" not in modifiers:
        return 0
    return BITS[modifiers[-1]] * max(int(m[1:]) if m in ("v2", "v4") else 1 for m in modifiers)


class CompiledKernels:
    """A subclass names the architecture and brings a fixture `runner`, the function that compiles runner.cpp."""

    architecture, dtype, tolerance = None, torch.float32, 0

    @property
    def kernels(self):
        return compiled(self.architecture, self.dtype)[0]

    def interpreter(self, runner, **options):
        machine = machines.Interpreter(runner(self.dtype), self.kernels, self.dtype, **options)
        machine.launches, machine.tolerance = launches(self.architecture, self.dtype), self.tolerance
        return machine

    @pytest.fixture
    def machine(self, runner):
        return self.interpreter(runner)

    def test_only_operations_of_the_contract(self):
        assert len(self.kernels) > 60, list(self.kernels)
        found = [line for kernel in self.kernels.values() for line in lint.violations(kernel)]
        assert not found, found

    def test_nothing_is_spilled_to_local_memory(self, record_property):
        kernels, usage = compiled(self.architecture, self.dtype)
        assert usage.keys() == kernels.keys(), usage.keys() ^ kernels.keys()
        record_property("registers", {name: registers for name, (registers, _) in usage.items()})
        spilled = {name: local for name, (_, local) in usage.items() if local}
        assert not spilled, spilled


class InterpretedProducts(CompiledKernels):
    """What 16-bit dtypes lack. A base class behind InterpretedKernels, so that its tests run before."""

    @pytest.mark.parametrize("multiprocessors", [132, 1])
    def test_products(self, runner, multiprocessors):
        small.products(self.interpreter(runner, multiprocessors=multiprocessors))

    def test_rows_losses_and_updates_write_16_bytes_at_once(self):
        together = 16 // self.dtype.itemsize
        parts = (
            f"WarpRowILi{8 * together}ELi{together}E",
            f"BlockRowILi{together}E",
            "LossTerm",
            "GradientTerm",
            "step_kernel",
            "map_k",
        )
        chosen = {name: k for name, k in self.kernels.items() if any(map(name.__contains__, parts))}
        assert len(chosen) > 40, list(chosen)
        for name, kernel in chosen.items():
            assert any(_bits_written(instruction) == 128 for instruction in kernel.code), name

    def test_attention(self, machine):
        small.attention(machine)

    def test_linear_forward(self, machine):
        small.linear_forward(machine)

    def test_functions(self, machine):
        small.functions(machine)


class InterpretedSteps(CompiledKernels):
    """Of float32 alone."""

    blocks = (2,)

    def test_training_steps(self, runner):
        for blocks in self.blocks:
            steps.small(self.interpreter(runner), blocks)


class InterpretedKernels(CompiledKernels):
    """Of any dtype. `too_deep`: parts of the names of kernels that only sums of 17 million terms ask for."""

    too_deep = ()

    def test_activations(self, machine):
        small.linear_gradients(machine)
        small.elementwise(machine)

    def test_arrays_that_begin_between_groups_of_elements(self, runner):
        small.elementwise(self.interpreter(runner, alignment=1))

    def test_losses(self, machine):
        small.losses(machine)

    def test_row_operations(self, machine):
        small.rows(machine)

    def test_sums(self, machine):
        small.sums(machine)

    def test_updates(self, machine):
        small.updates(machine)

    def test_graphs_begin_and_end(self, machine):
        small.graphs(machine)

    def test_an_access_beyond_an_array_is_noticed(self, machine):
        put = machine.memory.put
        machine.memory.put = lambda t: put(t[..., :-1, :]) if t is not None and t.dim() > 1 else put(t)
        with pytest.raises(Fault, match="softmax_kernel.*in no array"):
            ops.softmax(machine, torch.ones(3, 4, dtype=self.dtype))

    def test_a_class_index_out_of_range_stops_the_kernel(self, machine):
        with pytest.raises(Fault, match="class_indices_kernel.*a requirement does not hold"):
            ops.cross_entropy(machine, torch.zeros(4, 3, dtype=self.dtype), torch.tensor([0, 1, 3, 2]), reduction="sum")

    def test_every_kernel_is_launched(self, request):
        """After the other tests, all of them in this process."""
        worker = getattr(request.config, "workerinput", None)
        if worker and "loadscope" not in worker["mainargv"]:
            pytest.skip("the other tests may have run in another process")
        ran = launches(self.architecture, self.dtype)
        if not ran:
            pytest.skip("the other tests have not run")
        missing = [name for name in self.kernels.keys() - ran.keys() if not any(map(name.__contains__, self.too_deep))]
        assert not missing, missing
