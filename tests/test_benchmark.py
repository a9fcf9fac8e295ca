"""`make bench`: what it measures, what it writes, and that every goal it missed is explained."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import needs_native

import pytorch_ext.functional as F
from pytorch_ext import native

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import goals  # noqa: E402
import limits  # noqa: E402
import providers  # noqa: E402
import run  # noqa: E402
import timing  # noqa: E402

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))


@needs_native
def test_the_benchmark_writes_tables_figures_and_the_machine(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "--threads", "1", "--output", tmp_path]
    command += ["--group", "rows", "--group", "optimizers", "--match", "3x5", "--match", "SGD"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["machine"]["instruction set"] == native.library.capability() and report["machine"]["commit"]
    assert {"softmax 3x5 backward", "SGD, 101,770 parameters in 4 tensors"} <= {r["case"] for r in report["results"]}
    assert all(row["timings"]["ours"]["median"] > 0 for row in report["results"])
    table = (tmp_path / "results.md").read_text()
    assert "| softmax 3x5 backward | 1 |" in table and "| softmax 3x5 backward | 1 |" in done.stdout
    assert {file.name for file in tmp_path.glob("*.png")} == {"rows.png", "optimizers.png"}


@needs_native
def test_what_raises_on_a_gpu_leaves_the_rest_measured(monkeypatch, tmp_path, capsys):
    """A made-up device: tensors of the CPU, times of its clock."""

    def cases():
        x = torch.ones(3)
        yield "one that raises", {"ours": x.sum, "stock": x.sum, "Triton": lambda: x.view(7)}, {"op": "softmax"}
        yield "ours raises", {"ours": lambda: x.view(7), "stock": x.sum}, {}
        yield "too late", {"ours": x.sum, "stock": x.sum}, {}

    times = {"median": 1.0, "spread": 0.0, "disturbed": 0}
    monkeypatch.setattr(run, "GPU_GROUPS", {"rows": cases})
    monkeypatch.setattr(run, "compare", lambda providers, device: {p: timing.Timing(**times) for p in providers})
    monkeypatch.setattr(run, "machine", lambda *_: {"GPU": "Made-up GPU 9000"})
    monkeypatch.setattr(torch, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = iter([0, 1, 2, 99])
    monkeypatch.setattr(run, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    arguments = ["--device", "cuda", "--group", "rows", "--seconds", "50", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert run.main() == 1
    first, second = json.loads((tmp_path / "results.json").read_text())["results"]
    assert first["timings"] == {"ours": times, "stock": times} and first["op"] == "softmax"
    assert first["failed"].keys() == {"Triton"} and "shape '[7]' is invalid" in first["failed"]["Triton"]
    assert second["timings"].keys() == {"stock"} and second["failed"].keys() == {"ours"}
    assert "one that raises: Triton: RuntimeError: shape '[7]' is invalid" in capsys.readouterr().out
    table = (tmp_path / "results.md").read_text()
    assert "| one that raises | 1 | 1000000.0" in table and "ours raises" not in table


def test_a_context_surrounds_the_rounds_of_its_provider_only():
    seen = {"ours": set(), "inside": set()}

    def look(name):
        return lambda: seen[name].add(torch.get_float32_matmul_precision())

    timing.compare({"ours": look("ours"), "inside": providers.in_medium_precision(look("inside"))}, rounds=1)
    assert seen == {"ours": {"highest"}, "inside": {"medium"}}


@pytest.mark.parametrize(("times", "rounds"), [([1.0], 9), ([1.0, 1.05], 9), ([1.0, 2.0], 18)])
def test_times_that_lie_far_apart_take_more_rounds(monkeypatch, times, rounds):
    clock = itertools.cycle(times)
    taken = []

    def run_round(function, calls, device):
        taken.append(function())
        return (next(clock), 1.0) if taken[-1] == "ours" else (1.0, 1.0)

    monkeypatch.setattr(timing, "calls_per_round", lambda function, device: 1)
    monkeypatch.setattr(timing, "run_round", run_round)
    monkeypatch.setattr(timing, "is_disturbed", lambda wall, cpu: False)
    timing.compare({name: lambda name=name: name for name in ("ours", "stock")})
    assert taken.count("ours") == taken.count("stock") == rounds


@needs_native
def test_a_case_s_providers_run_ours_whatever_mode_it_was_made_in():
    nodes = []

    def seen(function):
        return lambda x: nodes.append(function(x).grad_fn.name()) or function(x)

    x = torch.ones(2, 3, requires_grad=True)
    for measure in (providers.both, providers.backward):
        with torch.device("cpu"):
            made = measure(seen(lambda x: F.softmax(x, 1)), lambda x: x.softmax(1), x)
        nodes.clear()
        made["ours"]()
        assert nodes == ["SoftmaxBackward"]


def test_the_peak_counts_what_is_freed_again():
    if limits.peak_memory(lambda: None) is None:
        pytest.skip("the system does not tell")
    size = 2**26
    assert 0.9 * size < limits.peak_memory(lambda: torch.ones(size // 4)) < 1.5 * size


def test_a_core_s_arithmetic_is_measured():
    speed = limits.arithmetic_speed()
    assert speed is None or speed > 1e9


def test_a_goal_is_held_against_its_own_provider():
    row = {"case": "step 10-5-5 CE Adam, batch 3", "threads": 1}
    row["timings"] = {name: {"median": t} for name, t in {"ours": 2, "ours, TrainStep": 0.2, "stock": 9}.items()}
    reached = {provider: (ratio, wanted) for _, provider, _, ratio, wanted in goals.outcomes([row])}
    assert reached == {"ours": (4.5, 5), "ours, TrainStep": (pytest.approx(45), 100)}


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.parent.name)
def test_every_goal_missed_by_committed_results_is_explained(file):
    page = (ROOT / "docs" / "performance.md").read_text()
    outcomes = goals.outcomes(json.loads(file.read_text())["results"])
    missed = {row["case"] for row, _, _, ratio, goal in outcomes if ratio < goal}
    assert missed == {case for case in missed if f"| {case} |" in page}
