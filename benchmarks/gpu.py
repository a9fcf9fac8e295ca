"""Builds, tests and measures the package on a machine with a GPU and no network: `make gpu`, options through ARGS.

Stages, each below ten minutes: build (for this GPU alone), test (the CUDA tests, those of Triton's kernels on the
device, then the whole suite), sanitize (compute-sanitizer's memcheck and racecheck over every op on small shapes),
bench (operators, optimisers and training steps at sizes that fill a GPU, beside stock PyTorch; then the table by which
`auto` chooses between CUDA C++ and Triton), models (the CPU's benchmark on the device). The steps of a stage share its
time. Results go to benchmarks/results/<gpu>/: a log per step, gpu.json with every outcome, a folder of tables per
group. Ends with 1 where a step failed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 570  # of a stage
TENSOR_CORES = {"PYTORCH_EXT_TENSOR_CORES": "1"}  # our own products of 16 bits instead of the stock operator's
TRITON = {"PYTORCH_EXT_BACKEND": "triton"}
# The tests that run Triton's kernels on the device.
OF_TRITON = "triton-cuda or on_a_device or (test_one_pass and triton)"
# Of gpu_cases.py, what `auto` chooses by first: the seconds in which a case may begin. Starting takes some ten more.
GROUPS = {
    "gpu_rows": 100,
    "gpu_attention": 50,
    "gpu_elementwise": 50,
    "gpu_optimizers": 20,
    "gpu_products": 50,
    "gpu_low_precision": 90,
    "gpu_steps": 50,
}


def architecture():
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def folder_name(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build_stage(options):
    environment = {"PYTORCH_EXT_BUILD": "cuda", "PYTORCH_EXT_CUDA_ARCHITECTURES": architecture()}
    yield "build", [sys.executable, "setup.py", "build_ext", "--inplace"], environment
    yield "doctor", [sys.executable, "-m", "pytorch_ext", "doctor", "--json"], {}


def in_processes(dist="loadscope"):
    """pytest in several processes, in which a kernel that hangs ends one of them; as far as the plugins are there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "300", "--timeout-method", "thread"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(os.cpu_count(), 8)), "--dist", dist]
    return command


def test_stage(options):
    pytest = in_processes()
    yield "test-cuda", [*in_processes("load"), "tests/test_cuda.py"], {}
    yield "test-triton", [*in_processes("load"), "tests", "-k", OF_TRITON], {}
    yield "test-tensor-cores", [*pytest, "tests/test_cuda_tensor_cores.py"], TENSOR_CORES
    rest = ["--ignore=tests/test_cuda.py", "-k", f"not ({OF_TRITON})"]
    yield "test-suite", [*pytest, "tests", *rest, *options.pytest], {}


def sanitize_stage(options):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on PATH: this stage is skipped")
        return
    # torch's allocator would hide overruns between its blocks.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "tests/sanitize.py"]
        yield tool, command, environment
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "tests/sanitize.py"]
    yield "memcheck-tensor-cores", [*command, "cuda", "linear", "matmul"], {**environment, **TENSOR_CORES}
    yield "memcheck-triton", command, {**environment, **TRITON}


def benchmark(options, name):
    """A process of its own: what a kernel breaks on the device stays broken to the end of the process."""
    return [sys.executable, "benchmarks/run.py", "--device", "cuda", "--output", str(options.output / name)]


def bench_stage(options):
    for group, seconds in GROUPS.items():
        command = [*benchmark(options, group), "--group", group, "--seconds", str(seconds), *options.bench]
        yield f"bench-{group}", command, {}
    results = [str(options.output / group / "results.json") for group in GROUPS]
    yield "table", [sys.executable, "benchmarks/gpu_table.py", *results], {}


def models_stage(options):
    group = ["--group", "gpu_low_precision", "--seconds", "90"]
    yield "bench-tensor-cores", [*benchmark(options, "tensor-cores"), *group], TENSOR_CORES
    yield "bench-models", [*benchmark(options, "models"), "--without-gpu-groups", "--seconds", "400"], {}


STAGES = {
    "build": build_stage,
    "test": test_stage,
    "sanitize": sanitize_stage,
    "bench": bench_stage,
    "models": models_stage,
}


def run(name, command, environment, output, seconds=SECONDS):
    """The outcome of one command; what it prints is shown and kept."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start, log = time.monotonic(), output / f"{name}.log"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment}
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:  # also what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-15:]), flush=True)
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "last": lines[-1] if lines else ""}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<gpu>")
    parser.add_argument("--step", action="append", help="only this step of the stages (may be repeated)")
    parser.add_argument("--pytest", nargs="*", default=[], help="more arguments for the suite")
    parser.add_argument("--bench", nargs="*", default=[], help="more arguments for the benchmark")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"expected stages of {', '.join(STAGES)}, got {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        print("make gpu: expected a CUDA device, got none (see `python -m pytorch_ext doctor`)", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name()
    options.output = (options.output or ROOT / "benchmarks" / "results" / folder_name(name)).resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "gpu.json"
    report = json.loads(record.read_text()) if record.is_file() else {}
    report |= {"gpu": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    failed, unknown = [], set(options.step or ())
    for stage in options.stages or STAGES:
        ends = time.monotonic() + SECONDS
        for step, command, environment in STAGES[stage](options):
            if options.step and step not in options.step:
                continue
            unknown.discard(step)
            outcome = run(step, command, environment, options.output, ends - time.monotonic())
            report.setdefault("steps", {})[step] = outcome
            failed += [step] if outcome["status"] else []
            record.write_text(json.dumps(report, indent=1) + "\n")
    failed += [f"{step} (no such step)" for step in sorted(unknown)]
    print(f"failed: {', '.join(failed)}" if failed else "every step passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
