"""Times of several providers of one computation, measured side by side.

Providers take turns, so that whatever disturbs the machine disturbs all of them. A round in which the process did not
get the processor (wall time well above CPU time) is thrown away and repeated; where the times of one provider still lie
far apart, all take as many turns again. On a GPU its own clock counts.
"""

import contextlib
import statistics
import time
from dataclasses import dataclass

import torch

ROUNDS, MOST_DISTURBED = 9, 27
WIDE = 0.1  # a spread of so much of the median asks for more rounds
TARGET_SECONDS = 0.02  # of one provider in one round


@dataclass
class Timing:
    """Seconds per call: median, and half the distance between the quartiles."""

    median: float
    spread: float
    disturbed: int


def calls_per_round(function, device):
    """How often to call it so that a round takes TARGET_SECONDS."""
    for _ in range(3):
        function()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < TARGET_SECONDS:
        function()
        calls += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return max(1, calls)


def is_disturbed(wall, cpu):
    """The calling thread waited for the processor: the process used less CPU time than the wall clock shows."""
    return cpu < 0.9 * wall


def run_on_gpu(function, calls):
    """Seconds by the GPU's clock, from before the first call's work to after the last one's; never disturbed."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    seconds = start.elapsed_time(end) / 1e3
    return seconds, seconds


def run_round(function, calls, device):
    if device == "cuda":
        return run_on_gpu(function, calls)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        function()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(providers, device="cpu", rounds=ROUNDS):
    """Timing of every provider: ``{name: function of no arguments}``, one with a ``context`` inside of it."""
    around = {name: getattr(f, "context", contextlib.nullcontext) for name, f in providers.items()}
    calls = {}
    for name, function in providers.items():
        with around[name]():
            calls[name] = calls_per_round(function, device)
    seconds = {name: [] for name in providers}
    disturbed = dict.fromkeys(providers, 0)
    for turn in range(2 * rounds):
        if turn == rounds and all(s.spread < WIDE * s.median for s in map(summary, seconds.values())):
            break
        for name, function in providers.items():
            with around[name]():
                wall, cpu = run_round(function, calls[name], device)
                while is_disturbed(wall, cpu) and disturbed[name] < MOST_DISTURBED:
                    disturbed[name] += 1
                    wall, cpu = run_round(function, calls[name], device)
            seconds[name].append(wall / calls[name])
    return {name: summary(times, disturbed[name]) for name, times in seconds.items()}


def summary(times, disturbed=0):
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return Timing(middle, (high - low) / 2, disturbed)
