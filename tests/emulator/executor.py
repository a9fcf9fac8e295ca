"""The native library as it was built, but on an emulated device: its own objects, csrc/launch and csrc/train among
them, linked with csrc/cuda compiled by the C++ compiler against the emulator, and with a device "cuda:0" for torch.

`python executor.py LIBRARY forwards|backwards ...` runs pytest on it, in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
FLAGS = ["-O1", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-w"]


def built_objects():
    """The objects of the last build for this Python; none where it was another checkout's, or without CUDA."""
    folder = ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    return sorted(path for path in folder.rglob("*.o") if path.parent != folder / "cuda" and (folder / "cuda").is_dir())


def link(folder, compiler):
    """The library, in `folder`."""
    from pytorch_ext.build import cuda_sources

    sources = [path for path in cuda_sources(ROOT / "csrc") if path.stem != "tensor_cores"]
    sources += [FOLDER / "no_tensor_cores.cpp", FOLDER / "device.cpp"]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda source: compiled(source, folder, compiler), sources))
    library = Path(folder, "_native.so")
    libraries = [f"-L{path}" for path in torch_paths("library")]
    libraries += ["-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    run([compiler, "-shared", *map(str, built_objects()), *objects, *libraries, "-o", str(library)])
    return library


def compiled(source, folder, compiler):
    output = str(Path(folder, f"{source.stem}.o"))
    if source.stem == "device":
        kind = ["-std=c++20", *(f"-isystem{path}" for path in torch_paths("include"))]
    else:
        kind = ["-std=c++17", "-DPYTORCH_EXT_ISA=device", "-include", str(FOLDER / "runtime.h")]
    run([compiler, *FLAGS, *kind, "-x", "c++", "-c", str(source), "-o", output])
    return output


def torch_paths(kind):
    from torch.utils import cpp_extension

    return getattr(cpp_extension, f"{kind}_paths")()


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def load(library):
    """Make the emulated library that of pytorch_ext."""
    import torch

    torch.cuda._lazy_init = lambda: None  # there is nothing to initialise
    spec = importlib.util.spec_from_file_location("pytorch_ext._native", library)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


def main():
    library, direction, *arguments = sys.argv[1:]
    load(library)
    import pytest
    import torch

    torch.ops.pytorch_ext_emulator.set_reversed(direction == "backwards")
    sys.path[0] = str(ROOT)
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main()
