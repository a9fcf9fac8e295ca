"""What can be known of `make gpu` without a GPU: its stages' commands, its refusals, its record."""

import itertools
import json
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import golden
import op_cases
import pytest
import torch

import pytorch_ext

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
        *("build", "doctor", "test-cuda", "test-triton", "test-tensor-cores", "test-suite"),
        *("memcheck", "racecheck", "memcheck-tensor-cores", "memcheck-triton"),
        *(f"bench-{group}" for group in gpu.GROUPS),
        *("table", "bench-tensor-cores", "bench-models"),
    ]


def test_every_group_of_the_gpu_is_measured_and_none_takes_another_s_time():
    gpu_cases = pytest.importorskip("gpu_cases")
    assert gpu.GROUPS.keys() == gpu_cases.GPU_GROUPS.keys()
    assert sum(gpu.GROUPS.values()) + 15 * len(gpu.GROUPS) < gpu.SECONDS


def test_the_chosen_tests_are_those_of_triton_on_the_device():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-k", gpu.OF_TRITON]
    files = [f"tests/test_{name}.py" for name in ("triton", "golden", "one_pass", "nll_loss", "layout")]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    counts = dict(re.findall(r"^(\S+\.py): (\d+)$", done.stdout, re.MULTILINE))
    assert done.returncode == 0 and list(map(counts.get, files))[-1] is None
    assert [int(counts[file]) for file in files[:2]] == [len(op_cases.OPS), len(golden.HASHES)]
    assert all(int(counts[file]) > 20 for file in files[2:4])


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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not in /proc")
def test_a_step_that_takes_too_long_ends_with_what_it_has_started(tmp_path):
    program = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid); p.wait()"
    slow = gpu.run("slow", [sys.executable, "-c", program], {}, tmp_path, seconds=3)
    assert slow["status"] == "timed out"
    stat = Path("/proc", slow["last"], "stat")
    deadline = time.monotonic() + 20
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_packages_that_the_caller_has_elsewhere_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "carried.py").write_text("there = 'yes'")
    found = gpu.run("import", [sys.executable, "-c", "import carried, pytorch_ext; print(carried.there)"], {}, tmp_path)
    assert (found["status"], found["last"]) == (0, "yes")


def on_a_machine_with_a_gpu(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made-up GPU 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path), *arguments])
    return gpu.main(), json.loads((tmp_path / "gpu.json").read_text())


def test_a_stage_s_steps_share_its_time_and_one_that_fails_does_not_end_it(monkeypatch, tmp_path):
    given = []

    def run(name, command, environment, output, seconds):
        given.append((name, seconds))
        return {"status": int(name == "bench-gpu_rows"), "seconds": 0.0, "last": ""}

    monkeypatch.setattr(gpu, "run", run)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    status, report = on_a_machine_with_a_gpu(monkeypatch, tmp_path, "build", "bench")
    assert status == 1 and report["gpu"] == "Made-up GPU 9000" and list(report["steps"]) == [name for name, _ in given]
    assert [seconds for _, seconds in given[:2]] == [560, 550]
    assert [seconds for _, seconds in given[2:]] == [560 - 10 * i for i in range(len(gpu.GROUPS) + 1)]


def test_single_steps_can_be_asked_for_by_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "run", lambda *arguments: {"status": 0, "seconds": 0.0, "last": ""})
    status, report = on_a_machine_with_a_gpu(monkeypatch, tmp_path, "--step", "table", "--step", "test-triton")
    assert status == 0 and set(report["steps"]) == {"table", "test-triton"}
    status, _ = on_a_machine_with_a_gpu(monkeypatch, tmp_path, "--step", "tabel")
    assert status == 1 and "failed: tabel (no such step)" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected a CUDA device, got none" in done.stderr
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "bake"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected stages of build, test, sanitize, bench, models, got bake" in done.stderr


def test_the_sanitized_program_runs_every_op():
    command = [sys.executable, ROOT / "tests" / "sanitize.py", "cpu"]
    environment = {**gpu.os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * len(op_cases.OPS) + 3  # and training steps


def test_the_gpu_s_benchmark_cases_compute_what_they_say(monkeypatch):
    gpu_cases = pytest.importorskip("gpu_cases")
    monkeypatch.setattr(gpu_cases, "ELEMENTS", 2**17)
    monkeypatch.setattr(gpu_cases, "ATTENTION", ((2, 80, False), (2, 80, True)))
    monkeypatch.setattr(gpu_cases, "COMPILED", ())
    labels = {"ours", "stock", *gpu_cases.paths()}
    for name, providers, cost in (*gpu_cases.gpu_rows(), *gpu_cases.gpu_attention(), *gpu_cases.gpu_elementwise()):
        results = {label: function() for label, function in providers.items()}
        assert results.keys() == labels and cost.keys() <= {"op", "dtype", "elements", "bytes", "operations"}
        assert callable(getattr(pytorch_ext.triton_path.namespace, cost["op"])) and 2**16 < cost["elements"] <= 2**17
        tensors = {label: r if isinstance(r, tuple) else (r,) for label, r in results.items()}
        if "dropout" not in name:
            for label, result in tensors.items():
                for a, b in zip(result, tensors["stock"], strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=f"{label}: {name}")


def test_the_gpu_s_benchmark_epochs_train_the_same_models(monkeypatch):
    gpu_cases = pytest.importorskip("gpu_cases")
    for name, providers, cost in itertools.islice(gpu_cases.GPU_GROUPS["gpu_steps"](), 4):
        losses = {label: (run(), run()) for label, run in providers.items()}
        assert losses["ours"][0] != losses["ours"][1] and cost["operations"] % 64 == 0
        for found in losses.values():
            assert found == pytest.approx(losses["stock"], rel=1e-3), name


def test_the_gpu_s_benchmark_steps_every_path_s_parameters(monkeypatch):
    gpu_cases = pytest.importorskip("gpu_cases")
    monkeypatch.setattr(gpu_cases, "TENSOR_ELEMENTS", 50)
    for _, providers, cost in gpu_cases.gpu_optimizers():
        optimizer = providers["ours"].__self__
        before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        for step in providers.values():
            step()
        assert not torch.equal(before[0], optimizer.param_groups[0]["params"][0])
        assert cost["elements"] == 64 * 50 and cost["op"] in ("sgd_step", "adam_step")


def test_a_case_on_one_path_leaves_the_choice_as_it_was():
    gpu_cases = pytest.importorskip("gpu_cases")
    choice = pytorch_ext.backends.choice
    before = choice.name, choice.kernels

    def look():
        return choice.name

    assert gpu_cases.on("stock", look)() == "stock"
    with pytest.raises(ZeroDivisionError):
        gpu_cases.on("stock", lambda: 1 / 0)()
    assert (choice.name, choice.kernels) == before
