"""Compiles csrc/ into pytorch_ext/_native: the only place that knows sources and flags.

setup.py loads this file by its path, because importing the package needs torch; so nothing here imports torch, or the
rest of the package, before a build is certain.
"""

import contextlib
import json
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
CURE = "python -m pytorch_ext build"

# Every source that includes torch, and the two that the kernels of all instruction sets share.
TORCH_SOURCES = ("*.cpp", "launch/*.cpp", "autograd/*.cpp", "cpu/capability.cpp", "cpu/parallel.cpp")
# Contraction would let the compiler choose a float instruction, which only csrc/numerics may do.
CONTRACT_FLAGS = ["-ffp-contract=off", "-fvisibility=hidden", "-g0"]
TORCH_FLAGS = ["-O2", *CONTRACT_FLAGS]  # torch's BuildExtension adds the -std its headers need
KERNEL_FLAGS = ["-std=c++17", "-O3", *CONTRACT_FLAGS, "-fno-exceptions", "-fno-math-errno"]
KERNEL_FLAGS += ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
X86_64 = {"baseline": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
INSTRUCTION_SETS = {"x86_64": X86_64, "amd64": X86_64}


class BuildError(RuntimeError):
    """The native part cannot be built here; the message says why."""


def instruction_sets() -> dict:
    """Name and compiler flags of every instruction set the CPU kernels are built for."""
    return INSTRUCTION_SETS.get(platform.machine().lower(), {"baseline": []})


def source_folder() -> Path:
    """csrc/ of an installed package, or of the checkout the package lies in."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise BuildError(f"the C++ sources are missing: there is no csrc/ops.cpp in {PACKAGE} or beside it")


def torch_sources(csrc: Path) -> list:
    return sorted(path for pattern in TORCH_SOURCES for path in csrc.glob(pattern))


def kernel_sources(csrc: Path) -> list:
    return sorted(set(csrc.glob("cpu/*.cpp")) - set(torch_sources(csrc)))


def cuda_sources(csrc: Path) -> list:
    return sorted(csrc.glob("cuda/*.cu"))


def requested_mode() -> str:
    mode = os.environ.get("PYTORCH_EXT_BUILD", "auto")
    if mode not in MODES:
        raise BuildError(f"PYTORCH_EXT_BUILD: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


def obstacle():
    """Why nothing can be compiled here, or None. Leaves ninja on PATH and the compiler in CXX."""
    if os.name == "nt":
        return "the native part is not built on Windows"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not visible to this build (pip hides it unless called with --no-build-isolation)"
    with contextlib.suppress(ImportError, AttributeError):
        import ninja

        # A virtual environment that is not activated has ninja, but not on PATH.
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    if not shutil.which("ninja"):
        return "ninja is not installed (pip install ninja)"
    return compiler_obstacle()


def compiler_obstacle():
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((name for name in compilers if shutil.which(shlex.split(name)[0])), None)
    if compiler is None:
        return f"there is no C++ compiler (looked for {', '.join(compilers)})"
    os.environ["CXX"] = compiler
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <string_view>\nint main() { return 0; }\n")
        command = [*shlex.split(compiler), "-std=c++17", "-c", str(source), "-o", str(source.with_suffix(".o"))]
        include = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
        probe = subprocess.run([*command, *include], capture_output=True, text=True)
    if probe.returncode:
        first = next((line for line in probe.stderr.splitlines() if "error" in line), "no message")
        return f"{compiler} cannot compile C++17 for Python {platform.python_version()}: {first}"
    return None


def setup_arguments(mode=None) -> dict:
    """What setuptools.setup() needs beside pyproject.toml; {} for a package without native part."""
    mode = mode or requested_mode()
    reason = "PYTORCH_EXT_BUILD=none" if mode == "none" else obstacle()
    if reason is None:
        return {"ext_modules": [extension(source_folder(), mode)], "cmdclass": {"build_ext": build_command()}}
    if mode in ("cpu", "cuda"):
        raise BuildError(f"PYTORCH_EXT_BUILD={mode}, but {reason}")
    notice(reason)
    return {}


def notice(reason: str):
    print(
        f"pytorch_ext: installing without the native part: {reason}.\n"
        f"pytorch_ext: everything works, on stock operators; `{CURE}` compiles the native part later.",
        file=sys.stderr,
    )


def extension(csrc: Path, mode: str):
    from torch.utils.cpp_extension import CppExtension

    # at::parallel_for is a header template: without -fopenmp it would silently use one thread. Nothing is linked:
    # the symbols come from the OpenMP runtime torch has loaded, so there is never a second one.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    # setuptools wants paths relative to setup.py; the folder that holds csrc/ is the working directory of every build.
    sources = [path.relative_to(csrc.parent).as_posix() for path in torch_sources(csrc)]
    native = CppExtension("pytorch_ext._native", sources, extra_compile_args={"cxx": [*TORCH_FLAGS, *openmp]})
    native.optional = mode == "auto"
    return native


def build_command():
    """torch's BuildExtension, with every kernel compiled once per instruction set into the same library."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildNative(BuildExtension):
        def run(self):
            self.force = True  # whether an object is up to date is ninja's decision: it knows the headers
            self.built = []
            super().run()
            for name in self.built:
                write_record(Path(self.get_ext_fullpath(name)).parent)

        def build_extension(self, ext):
            try:
                ext.extra_objects = self.kernel_objects()
                super().build_extension(ext)
                self.built.append(ext.name)
            except Exception as error:
                if not ext.optional:
                    raise
                notice(f"the compilation failed ({str(error).splitlines()[0]})")

        def kernel_objects(self):
            csrc, objects = source_folder(), []
            sources = [path.relative_to(csrc.parent).as_posix() for path in kernel_sources(csrc)]
            for name, flags in instruction_sets().items():
                objects += self.compiler.compile(
                    sources,
                    output_dir=str(Path(self.build_temp, name)),
                    extra_postargs={"cxx": [*KERNEL_FLAGS, f"-DPYTORCH_EXT_ISA={name}", *flags]},
                )
            return objects

    return BuildNative


def write_record(folder: Path):
    """What the library was built with; native.py refuses a library that does not fit the running torch."""
    import torch

    version = subprocess.run([*shlex.split(os.environ["CXX"]), "--version"], capture_output=True, text=True)
    record = {
        "pytorch_ext": runpy.run_path(str(PACKAGE / "version.py"))["__version__"],
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": version.stdout.partition("\n")[0],
        "instruction_sets": list(instruction_sets()),
        "cuda": None,
    }
    Path(folder, "_native.json").write_text(json.dumps(record, indent=2) + "\n")


def build_in_place(jobs=None):
    """Compile against the torch that is installed and put the library into the package folder."""
    from setuptools import Distribution

    if jobs:
        os.environ["MAX_JOBS"] = str(jobs)
    if not os.access(PACKAGE, os.W_OK):
        raise BuildError(f"{PACKAGE} is not writable: install pytorch_ext into a virtual environment of your own")
    csrc = source_folder()
    arguments = {"name": "pytorch_ext", "package_dir": {"pytorch_ext": str(PACKAGE)}, **setup_arguments("cpu")}
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(csrc.parent)
        command = Distribution(arguments).get_command_obj("build_ext")
        command.inplace = True
        if csrc.parent == PACKAGE:  # installed: leave no objects there; a checkout keeps them for the next build
            build = stack.enter_context(tempfile.TemporaryDirectory())
            command.build_lib, command.build_temp = f"{build}/lib", f"{build}/temp"
        command.ensure_finalized()
        command.run()


def add_arguments(parser):
    parser.add_argument("--jobs", type=int, help="compilers at a time (default: one per core, and two)")


def run(arguments) -> int:
    try:
        build_in_place(arguments.jobs)
    except (BuildError, RuntimeError) as error:
        print(f"pytorch_ext: the native part was not built: {error}", file=sys.stderr)
        return 1
    print("pytorch_ext: the native part is built; `python -m pytorch_ext doctor` shows what it can do")
    return 0
