"""nvcc on the kernels of csrc/cuda: PTX, and what ptxas reports of registers and spills."""

import re
import shutil
import subprocess
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
SOURCE = TESTS / "emulator" / "runner.cpp"
# A launcher hands its lambdas, which are the host's, to functions that are for both: nvcc warns of it, and of GCC's
# pragmas.
FLAGS = ["-std=c++17", "-x", "cu", "-diag-suppress", "20013,20015,1675"]
FUNCTION = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+)",
    re.S,
)


def executable():
    return shutil.which("nvcc")


def compile_to_ptx(architecture, folder, flags=()):
    """The PTX of every kernel, and {kernel: (registers, bytes in local memory)}, for an architecture such as sm_90."""
    command = [executable(), *FLAGS, *flags, f"-arch={architecture}", "-Xptxas", "-v", "--keep", "--keep-dir"]
    command += [str(folder), "-cubin", str(SOURCE), "-o", str(folder / "kernels.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvcc -arch={architecture} failed:\n{result.stdout}{result.stderr}")
    report = FUNCTION.findall(result.stdout + result.stderr)
    usage = {name: (int(registers), sum(map(int, local))) for name, *local, registers in report}
    return (folder / f"{SOURCE.stem}.ptx").read_text(), usage
