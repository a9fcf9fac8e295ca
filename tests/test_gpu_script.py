"""What can be known of `make gpu` without a GPU: its stages' commands, its refusals, its record."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

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
        *("build", "doctor", "test-cuda", "test-tensor-cores", "test-suite"),
        *("memcheck", "racecheck", "memcheck-tensor-cores", "bench", "table", "bench-tensor-cores"),
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
