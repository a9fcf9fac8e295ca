"""Compiles csrc/ into pytorch_ext/_native: the only place that knows sources and flags.

setup.py loads this file by its path, because importing the package needs torch; so nothing here imports torch, or the
rest of the package, before a build is certain.
"""

import contextlib
import hashlib
import importlib.util
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
TORCH_SOURCES = ("*.cpp", "launch/*.cpp", "autograd/*.cpp", "train/*.cpp", "cpu/capability.cpp", "cpu/parallel.cpp")
# Contraction would let the compiler choose a float instruction, which only csrc/numerics may do.
CONTRACT_FLAGS = ["-ffp-contract=off", "-fvisibility=hidden", "-g0"]
TORCH_FLAGS = ["-O2", *CONTRACT_FLAGS]  # torch's BuildExtension adds the -std its headers need
KERNEL_FLAGS = ["-std=c++17", "-O3", *CONTRACT_FLAGS, "-fno-exceptions", "-fno-math-errno"]
KERNEL_FLAGS += ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
X86_64 = {"baseline": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
INSTRUCTION_SETS = {"x86_64": X86_64, "amd64": X86_64}
# 20013, 20015: a launcher hands its lambdas, which are the host's, to functions that are for both. 1675: g++'s pragmas.
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-DPYTORCH_EXT_ISA=device", "-diag-suppress", "20013,20015,1675"]
CUDA_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
# A device runs the code of its own architecture or the last one's PTX; 80 is for 86 and 89 too.
CUDA_ARCHITECTURES = ("80", "90a", "100")
# The runtime is linked in, so that the library also loads where there is none.
CUDA_LIBRARIES = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]


# What Python sees of the library: the operators' schemas and the functions of the module.
INTERFACE = ("ops.cpp", "module.cpp", "launch/functions.cpp", "launch/optimizers.cpp", "train/train_step.cpp")


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


def interface() -> str:
    """A hash of the sources that say what Python sees of the library."""
    csrc, found = source_folder(), hashlib.sha256()
    for name in INTERFACE:
        found.update((csrc / name).read_bytes())
    return found.hexdigest()


def torch_sources(csrc: Path) -> list:
    return sorted(path for pattern in TORCH_SOURCES for path in csrc.glob(pattern))


def kernel_sources(csrc: Path) -> list:
    return sorted(set(csrc.glob("cpu/*.cpp")) - set(torch_sources(csrc)))


def cuda_sources(csrc: Path) -> list:
    return sorted(csrc.glob("cuda/*.cu"))


def nvcc():
    """CUDA's compiler: that of CUDA_HOME, on PATH, or of PyPI's package nvidia-cuda-nvcc; None where there is none."""
    homes = [Path(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = next((str(path) for path in homes if path.is_file()), None) or shutil.which("nvcc")
    if found is None:
        folders = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
        found = next((str(path) for folder in folders for path in sorted(Path(folder).glob("*/bin/nvcc"))), None)
    return found


def cuda_architectures(compiler: str) -> list:
    """Those to compile for: PYTORCH_EXT_CUDA_ARCHITECTURES (as in 80,90a) or all of ours that this nvcc knows."""
    asked = os.environ.get("PYTORCH_EXT_CUDA_ARCHITECTURES")
    if asked:
        return asked.split(",")
    known = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in CUDA_ARCHITECTURES if f"compute_{name.rstrip('a')}" in known]


def cuda_objects(csrc: Path, folder: Path, compiler: str) -> list:
    """Compile every CUDA source that is newer than its object; the objects, and what the linker needs beside them."""
    from ninja import ninja_syntax

    architectures = cuda_architectures(compiler)
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    newest = architectures[-1].rstrip("a")
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    names = ", ".join(f"sm_{name}" for name in architectures)
    targets += ["-ccbin", shlex.split(os.environ["CXX"])[0], f"'-DPYTORCH_EXT_ARCHITECTURES=\"{names}\"'"]
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source: str(folder.resolve() / f"{source.stem}.o") for source in cuda_sources(csrc)}
    with open(folder / "build.ninja", "w") as file:
        writer = ninja_syntax.Writer(file, width=1000)
        command = f"{shlex.quote(compiler)} {' '.join([*CUDA_FLAGS, *targets])} -MD -MF $out.d -c $in -o $out"
        writer.rule("cuda", command, depfile="$out.d", deps="gcc")
        for source, output in objects.items():
            writer.build(output, "cuda", str(source.resolve()))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run(["ninja", *jobs, "-C", str(folder)], check=True)
    plan = subprocess.run([compiler, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    libraries = next((line.partition("=")[2] for line in plan.splitlines() if line.startswith("#$ LIBRARIES")), "")
    return [*objects.values(), *shlex.split(libraries), *CUDA_LIBRARIES]


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
    native.mode = mode
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
                write_record(Path(self.get_ext_fullpath(name)).parent, self.with_cuda)

        def build_extension(self, ext):
            try:
                ext.extra_objects = self.kernel_objects() + self.cuda_objects(ext)
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

        def cuda_objects(self, ext):
            compiler, self.with_cuda = nvcc() if ext.mode != "cpu" else None, None
            if compiler is None:
                if ext.mode == "cuda":
                    raise BuildError(
                        "PYTORCH_EXT_BUILD=cuda, but there is no nvcc (see `python -m pytorch_ext doctor`)"
                    )
                return []
            try:
                objects = cuda_objects(source_folder(), Path(self.build_temp, "cuda"), compiler)
            except (OSError, subprocess.CalledProcessError) as error:
                if ext.mode == "cuda":
                    raise
                print(f"pytorch_ext: building without CUDA: {error}", file=sys.stderr)
                return []
            version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
            self.with_cuda = {
                "nvcc": version.strip().splitlines()[-1],
                "architectures": cuda_architectures(compiler),
            }
            ext.define_macros.append(("PYTORCH_EXT_CUDA", None))
            return objects

    return BuildNative


def write_record(folder: Path, with_cuda):
    """What the library was built with; native.py refuses a library that does not fit the running torch."""
    import torch

    version = subprocess.run([*shlex.split(os.environ["CXX"]), "--version"], capture_output=True, text=True)
    record = {
        "pytorch_ext": runpy.run_path(str(PACKAGE / "version.py"))["__version__"],
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": version.stdout.partition("\n")[0],
        "interface": interface(),
        "instruction_sets": list(instruction_sets()),
        "cuda": with_cuda,
    }
    Path(folder, "_native.json").write_text(json.dumps(record, indent=2) + "\n")


def build_in_place(jobs=None):
    """Compile against the torch that is installed and put the library into the package folder."""
    from setuptools import Distribution

    if jobs:
        os.environ["MAX_JOBS"] = str(jobs)
    if not os.access(PACKAGE, os.W_OK):
        raise BuildError(f"{PACKAGE} is not writable: install pytorch_ext into a virtual environment of your own")
    csrc, mode = source_folder(), requested_mode()
    if mode in ("auto", "none"):  # asked for by hand: a failure is an error, not a notice
        mode = "cuda" if nvcc() else "cpu"
    arguments = {"name": "pytorch_ext", "package_dir": {"pytorch_ext": str(PACKAGE)}, **setup_arguments(mode)}
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
