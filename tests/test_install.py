"""Never a broken install: without a compiler, or with a library that does not fit, stock operators do the work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pytorch_ext
from pytorch_ext import build, doctor, native

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(pytorch_ext.__file__).resolve().parent
CURE = "python -m pytorch_ext build"
needs_library = pytest.mark.skipif(native.library is None, reason=f"no native part: {native.reason}")

REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pytorch_ext
    from pytorch_ext import build, doctor, native
messages = [str(w.message) for w in caught if "pytorch_ext" in str(w.message)]
import torch
y = pytorch_ext.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
print(json.dumps([pytorch_ext.__file__, native.library is not None, native.reason, native.cure, messages, y.tolist()]))
"""


def run_python(folder, *arguments):
    """The last thing that a Python whose packages come from `folder` prints, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("PYTORCH_EXT_NATIVE", None)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    """An installed package that was built without its native part."""
    folder = tmp_path_factory.mktemp("pure")
    # A copy of the sources: a build leaves folders behind.
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "_native.*", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    command = [*pip, "--target", str(folder / "installed"), str(folder / "source")]
    environment = {**os.environ, "PYTORCH_EXT_BUILD": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "installed"


def test_a_package_without_native_part_works_on_stock_operators(pure):
    file, loaded, reason, cure, messages, y = run_python(pure, "-c", REPORT)
    assert Path(file).is_relative_to(pure)
    assert (loaded, reason, cure) == (False, "the native part was not built", CURE)
    assert messages == []  # chosen by the user, or said at install time: no warning at every import
    assert y == [[3.0] * 4] * 2


def test_the_doctor_of_such_a_package_names_reason_and_cure(pure):
    report = run_python(pure, "-m", "pytorch_ext", "doctor", "--json")
    assert set(report["paths"]) == {"cpu", "cuda", "triton"}
    assert report["torch"]["built_with"] is None
    cpu = report["paths"]["cpu"]
    assert (cpu["available"], cpu["reason"], cpu["cure"]) == (False, "the native part was not built", CURE)


def test_an_installed_package_has_all_it_needs_to_build_itself(pure):
    sources = {file.relative_to(ROOT / "csrc") for file in (ROOT / "csrc").rglob("*") if file.suffix in (".cpp", ".h")}
    installed = pure / "pytorch_ext" / "csrc"
    assert {file for file in sources if not (installed / file).is_file()} == set()
    assert (pure / "pytorch_ext" / "triton_kernels" / "__init__.py").is_file()
    assert sorted(entry.name for entry in pure.iterdir() if not entry.name.endswith(".dist-info")) == ["pytorch_ext"]


@needs_library
@pytest.mark.parametrize("key", ["torch", "python", "pytorch_ext"])
def test_a_library_built_for_something_else_does_not_fit(key):
    record = json.loads((PACKAGE / "_native.json").read_text())
    assert native.misfit(record) is None
    assert "0.0.1" in native.misfit({**record, key: "0.0.1"})
    assert native.misfit({name: value for name, value in record.items() if name != key}) is not None


def test_torch_versions_are_compared_with_their_local_part():
    assert native.same_version("2.13.0+cpu", "2.13+cpu")
    assert not native.same_version("2.13.0+cpu", "2.13.0+cu130")
    assert not native.same_version("2.9.0", "2.13.0")
    assert native.same_version("my-branch", "my-branch")


@pytest.mark.parametrize("text", ["not json", "[]", "{}", None])
def test_a_library_without_a_readable_record_is_not_loaded(tmp_path, monkeypatch, text):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv("PYTORCH_EXT_NATIVE", raising=False)
    (tmp_path / "_native.cpython-311.so").touch()
    if text is not None:
        (tmp_path / "_native.json").write_text(text)
    with pytest.warns(UserWarning, match=CURE) as caught:
        library, record, reason, cure = native.load()
    assert (library, cure, len(caught)) == (None, CURE, 1)
    assert "_native.json" in reason


def test_the_native_part_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PYTORCH_EXT_NATIVE", "0")
    library, record, reason, cure = native.load()
    assert library is None
    assert "PYTORCH_EXT_NATIVE" in reason and "PYTORCH_EXT_NATIVE" in cure


@needs_library
def test_the_doctor_names_an_instruction_set_that_was_asked_for_in_vain(monkeypatch):
    sets = native.library.available_capabilities()
    assert set(sets) <= set(build.instruction_sets()) and native.library.capability() in sets
    monkeypatch.setenv("PYTORCH_EXT_CPU_CAPABILITY", "avx1024")
    path = doctor.cpu_path()
    assert path.available and "avx1024" in path.reason and sets[-1] in path.cure


@pytest.fixture
def copied(tmp_path):
    """The folder of a copy of this package with its library, and the path of the record of its build."""
    shutil.copytree(PACKAGE, tmp_path / "pytorch_ext", ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    return tmp_path, tmp_path / "pytorch_ext" / "_native.json"


@needs_library
def test_a_library_of_another_torch_gives_one_warning_and_stock_operators(copied):
    folder, record = copied
    record.write_text(json.dumps({**json.loads(record.read_text()), "torch": "2.11.0"}))
    _, loaded, reason, cure, messages, y = run_python(folder, "-c", REPORT)
    assert (loaded, cure, len(messages)) == (False, CURE, 1)
    assert "2.11.0" in reason and "2.11.0" in messages[0] and CURE in messages[0]
    assert y == [[3.0] * 4] * 2


@needs_library
def test_a_damaged_library_gives_one_warning_and_stock_operators(copied):
    folder, record = copied
    for library in record.parent.glob("_native.*.so"):
        library.unlink()
        library.write_bytes(b"\x7fELF, but not quite")
    _, loaded, reason, cure, messages, y = run_python(folder, "-c", REPORT)
    assert (loaded, cure, len(messages)) == (False, CURE, 1)
    assert "cannot be loaded" in reason
    assert y == [[3.0] * 4] * 2


@needs_library
@pytest.mark.parametrize("change", ["another schema", "no record of it"])
def test_a_library_of_other_sources_gives_one_warning_and_stock_operators(copied, change):
    """Newer Python files beside an older library, say after git pull: they name operators that it does not have."""
    folder, record = copied
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    written = json.loads(record.read_text())
    assert written["interface"] == build.interface()
    if change == "another schema":
        with open(folder / "csrc" / "ops.cpp", "a") as schemas:
            schemas.write("// a new operator\n")
    else:
        del written["interface"]
        record.write_text(json.dumps(written))
    _, loaded, reason, cure, messages, y = run_python(folder, "-c", REPORT)
    assert (loaded, cure, len(messages)) == (False, CURE, 1)
    assert "other C++ sources" in reason and CURE in messages[0]
    assert y == [[3.0] * 4] * 2


def test_the_record_of_a_build_knows_every_source_that_python_sees():
    defines = re.compile(r"\bm\.def\(|TORCH_LIBRARY\(|PYBIND11_MODULE\(|py::class_<")
    csrc = ROOT / "csrc"
    found = {path.relative_to(csrc).as_posix() for path in csrc.rglob("*.cpp") if defines.search(path.read_text())}
    assert found == set(build.INTERFACE)


@pytest.mark.parametrize("mode", ["fast", ""])
def test_an_unknown_build_mode_is_named(monkeypatch, mode):
    monkeypatch.setenv("PYTORCH_EXT_BUILD", mode)
    with pytest.raises(build.BuildError, match="PYTORCH_EXT_BUILD: expected one of auto, cpu, cuda, none, got"):
        build.setup_arguments()


def test_a_build_without_a_compiler_is_an_error_only_where_it_was_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="PYTORCH_EXT_BUILD=cpu, but .*no C\\+\\+ compiler"):
        build.setup_arguments("cpu")
    assert build.setup_arguments("auto") == {}
    notice = capsys.readouterr().err
    assert "without the native part" in notice and CURE in notice


def test_importing_the_package_leaves_torch_s_compiler_and_triton_alone():
    """Dynamo alone takes longer to import than torch."""
    code = "import json, sys, pytorch_ext; print(json.dumps([m in sys.modules for m in ('torch._dynamo', 'triton')]))"
    assert run_python(PACKAGE.parent, "-c", code) == [False, False]
