"""What can be known of `make gpu` without a GPU: its stages' commands, its refusals, its record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
gpu = pytest.importorskip("gpu")


def options(**values):
    return gpu.argparse.Namespace(**{"output": ROOT / "somewhere", "pytest": [], "bench": [], **values})


def test_every_stage_runs_files_that_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/bin/{name}")
    names = []
    for stage in gpu.STAGES.values():
        for name, command, environment in stage(options()):
            names.append(name)
            files = [a.removeprefix("--ignore=") for a in command if a.endswith(".py")]
            assert all((ROOT / file).is_file() for file in files), command
            assert all(isinstance(v, str) for v in environment.values())
    assert names == [
        *("build", "doctor", "test-cuda", "test-tensor-cores", "test-suite"),
        *("memcheck", "racecheck", "memcheck-tensor-cores", "bench", "bench-tensor-cores"),
    ]


def test_it_builds_for_the_architecture_of_the_device(monkeypatch):
    for capability, name in [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100a")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert gpu.architecture() == name


def test_outcomes_and_logs_are_kept(tmp_path):
    good = gpu.run("good", [sys.executable, "-c", "print('fine')"], {}, tmp_path)
    program = "import os, sys; sys.exit(int(os.environ['CODE']))"
    bad = gpu.run("bad", [sys.executable, "-c", program], {"CODE": "3"}, tmp_path)
    assert good["status"] == 0 and good["last"] == "fine" and (tmp_path / "good.log").read_text() == "fine\n"
    assert bad["status"] == 3 and json.dumps(bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected a CUDA device, got none" in done.stderr
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "bake"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected stages of build, test, sanitize, bench, got bake" in done.stderr


def test_the_sanitized_program_runs_every_op():
    command = [sys.executable, ROOT / "tests" / "sanitize.py", "cpu"]
    environment = {**gpu.os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 18


def test_the_gpu_s_benchmark_cases_compute_what_they_say(monkeypatch):
    gpu_cases = pytest.importorskip("gpu_cases")
    monkeypatch.setattr(gpu_cases, "ELEMENTS", 2**17)
    for name, providers, cost in (*gpu_cases.gpu_rows(), *gpu_cases.gpu_elementwise()):
        results = [function() for function in providers.values()]
        ours, theirs = (r if isinstance(r, tuple) else (r,) for r in results)
        assert set(cost) <= {"bytes", "operations"}
        if "dropout" not in name:
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
