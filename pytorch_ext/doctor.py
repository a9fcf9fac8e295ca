"""Names every path of this installation: available or not, and then why not and what to do about it."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field

import torch

from . import build, native
from .triton_path import missing_device, unfit
from .version import __version__

NONE_NEEDED = "none needed: every tensor takes another path, or the stock operators"


@dataclass
class Path:
    name: str
    available: bool
    state: str
    reason: str = None
    cure: str = None
    instruction_sets: list = field(default_factory=list)

    def lines(self):
        sets = f" (this processor and build have {', '.join(self.instruction_sets)})" if self.instruction_sets else ""
        yield f"{self.name}: {self.state}{sets}"
        if self.reason:
            yield f"  reason: {self.reason}"
        if self.cure:
            yield f"  cure: {self.cure}"


def cpu_path() -> Path:
    if native.library is None:
        return Path("cpu", False, "stock operators only", native.reason, native.cure)
    sets = list(native.library.available_capabilities())
    path = Path("cpu", True, native.library.capability(), instruction_sets=sets)
    wanted = os.environ.get("PYTORCH_EXT_CPU_CAPABILITY")
    if wanted and wanted not in sets:
        path.reason = f"PYTORCH_EXT_CPU_CAPABILITY={wanted} was asked for, which is not available here"
        path.cure = f"set it to one of {', '.join(sets)}, or unset it"
    return path


def cuda_path() -> Path:
    try:
        sources = build.cuda_sources(build.source_folder())
    except build.BuildError:
        sources = []
    if not sources:
        return Path("cuda", False, "not built", "this version has no CUDA kernels", NONE_NEEDED)
    if native.library is None:
        return Path("cuda", False, "not built", native.reason, native.cure)
    if not native.record.get("cuda"):
        cure = f"install the CUDA toolkit (or pip install nvidia-cuda-nvcc), then PYTORCH_EXT_BUILD=cuda {native.BUILD}"
        return Path("cuda", False, "not built", "there was no nvcc when the native part was built", cure)
    if not torch.cuda.is_available():
        return Path("cuda", False, "built, no device", *missing_device())
    return tested_devices()


def tested_devices() -> Path:
    """The devices of this machine, each with the result of the self-test."""
    problems, passed = [], []
    for i in range(torch.cuda.device_count()):
        try:
            wrong = native.library.self_test(f"cuda:{i}")
            problem = f"{wrong} differs from the specification" if wrong else None
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        found = problems if problem else passed
        found.append(f"cuda:{i} ({torch.cuda.get_device_name(i)})" + (f": {problem}" if problem else ""))
    state = f"self-test passed on {', '.join(passed)}" if passed else "self-test failed"
    if not problems:
        return Path("cuda", True, state)
    cure = "stock operators take over there; rebuild for this architecture: PYTORCH_EXT_BUILD=cuda " + native.BUILD
    return Path("cuda", bool(passed), state, "; ".join(problems), cure)


def triton_path() -> Path:
    found = unfit()
    if found:
        return Path("triton", False, "not usable", *found)
    found = missing_device()
    if not found:
        return Path("triton", True, torch.cuda.get_device_name())
    return Path("triton", True, "interpreted only (no GPU)", found[0], f"{found[1]}; to interpret, TRITON_INTERPRET=1")


def examine() -> dict:
    paths = [cpu_path(), cuda_path(), triton_path()]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": {"running": torch.__version__, "built_with": native.record.get("torch")},
        "compiler": native.record.get("compiler"),
        "threads": torch.get_num_threads(),
        "paths": {path.name: asdict(path) for path in paths},
    }


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments) -> int:
    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    built_with = report["torch"]["built_with"]
    print(f"pytorch_ext {report['version']}, Python {report['python']}, {report['threads']} threads")
    print(f"torch {report['torch']['running']}" + (f", native part built with {built_with}" if built_with else ""))
    for path in report["paths"].values():
        print("\n".join(Path(**path).lines()))
    return 0
