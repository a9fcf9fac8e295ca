"""Builds, tests and measures the package on a machine with a GPU and no network: `make gpu`, options through ARGS.

Stages, each below ten minutes: build (for this GPU alone), test (the CUDA tests, then the whole suite), sanitize
(compute-sanitizer's memcheck and racecheck over every op on small shapes), bench (operators, optimisers and training
steps beside stock PyTorch; then the table by which `auto` chooses between CUDA C++ and Triton). Results go to
benchmarks/results/<gpu>/: a log per stage, gpu.json with every outcome, and the benchmark's tables. Ends with 1 where
a stage failed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 570  # of a stage
TENSOR_CORES = {"PYTORCH_EXT_TENSOR_CORES": "1"}  # our own products of 16 bits instead of the stock operator's


def architecture():
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def folder_name(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build_stage(options):
    environment = {"PYTORCH_EXT_BUILD": "cuda", "PYTORCH_EXT_CUDA_ARCHITECTURES": architecture()}
    yield "build", [sys.executable, "setup.py", "build_ext", "--inplace"], environment
    yield "doctor", [sys.executable, "-m", "pytorch_ext", "doctor", "--json"], {}


def test_stage(options):
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    yield "test-cuda", [*pytest, "tests/test_cuda.py"], {}
    yield "test-tensor-cores", [*pytest, "tests/test_cuda_tensor_cores.py"], TENSOR_CORES
    yield "test-suite", [*pytest, "tests", "--ignore=tests/test_cuda.py", *options.pytest], {}


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


def bench_stage(options):
    command = [sys.executable, "benchmarks/run.py", "--device", "cuda", "--output", str(options.output)]
    yield "bench", [*command, *options.bench], {}
    yield "table", [sys.executable, "benchmarks/gpu_table.py", str(options.output / "results.json")], {}
    command = [*command[:-1], str(options.output / "tensor-cores"), "--group", "gpu_low_precision"]
    yield "bench-tensor-cores", command, TENSOR_CORES


STAGES = {"build": build_stage, "test": test_stage, "sanitize": sanitize_stage, "bench": bench_stage}


def run(name, command, environment, output):
    """The outcome of one command; what it prints is shown and kept."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start, log = time.monotonic(), output / f"{name}.log"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    with open(log, "w") as file:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            status = "timed out"
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-15:]), flush=True)
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "last": lines[-1] if lines else ""}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<gpu>")
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
    failed = []
    for stage in options.stages or STAGES:
        for step, command, environment in STAGES[stage](options):
            outcome = run(step, command, environment, options.output)
            report.setdefault("steps", {})[step] = outcome
            failed += [step] if outcome["status"] else []
            record.write_text(json.dumps(report, indent=1) + "\n")
    print(f"failed: {', '.join(failed)}" if failed else "every step passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
