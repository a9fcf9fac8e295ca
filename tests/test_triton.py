"""The Triton path as a backend: when it can be chosen, what is said where it cannot, and what it covers."""

import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import op_cases
import pytest
import torch
from accuracy import assert_same_bits
from conftest import needs_interpreter, needs_native, needs_triton_on_cuda

import pytorch_ext
from pytorch_ext import backends, doctor, functional, native, triton_path

ROOT = Path(__file__).resolve().parent.parent


needs_triton = pytest.mark.skipif(triton_path.triton_version() is None, reason="there is no package named triton")


def set_version(monkeypatch, version):
    def find(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, f"there is no package named triton, version {triton_path.MINIMUM} or newer is needed"),
        ("3.5.1", f"this is Triton 3.5.1, version {triton_path.MINIMUM} or newer is needed"),
        ("2.1.0+git1", "this is Triton 2.1.0"),
    ],
)
def test_a_missing_or_old_triton_is_named_with_the_version_it_takes(monkeypatch, version, reason):
    set_version(monkeypatch, version)
    with pytest.raises(ValueError, match=f"backend: expected one of .*, got 'triton': {reason}.*pip install 'triton>="):
        with pytorch_ext.backend("triton"):
            pass
    path = doctor.triton_path()
    assert not path.available and path.reason.startswith(reason) and path.cure == triton_path.INSTALL
    assert "triton" not in pytorch_ext.available_backends()


WITHOUT = """
import json, os, torch, pytorch_ext, pytorch_ext.functional as F
from pytorch_ext import doctor
x = torch.arange(6.0).reshape(2, 3).requires_grad_()
F.softmax(F.linear(x, torch.ones(4, 3), activation="gelu"), 1).sum().backward()
compiled = torch.compile(lambda x: F.softmax(x, 1), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x), F.softmax(x, 1))
try:
    with pytorch_ext.backend("triton"):
        pass
except ValueError as error:
    print(error)
print(*doctor.triton_path().lines())
"""


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "there is no package named triton, version"),
        pytest.param("3.5.1", "this is Triton 3.5.1, version", marks=needs_triton),
    ],
)
def test_everything_else_works_beside_no_triton_or_an_old_one(tmp_path, version, reason):
    """In a process whose packages are this one's without Triton, or with another version of it in its metadata."""
    for file in Path(torch.__file__).resolve().parents[1].iterdir():
        if not re.match(r"(pytorch_)?triton-" if version else "(pytorch_)?triton", file.name):
            (tmp_path / file.name).symlink_to(file)
    if version:
        (tmp_path / f"triton-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n"
        (tmp_path / f"triton-{version}.dist-info" / "METADATA").write_text(metadata)
    code = f"import sys; sys.path += [{str(ROOT)!r}, {str(tmp_path)!r}]\n{WITHOUT}"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTORCH_EXT_BACKEND")}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error, report = done.stdout.split("\n", 1)
    needed = f"{reason} {triton_path.MINIMUM} or newer is needed"
    assert re.match(rf"backend: expected one of .*, got 'triton': {needed}; pip install 'triton>=", error), error
    assert needed in report and triton_path.INSTALL in report and "not usable" in report


@pytest.mark.parametrize("version", [triton_path.MINIMUM, "3.10.0+git12ab", "4.0"])
def test_a_new_enough_triton_is_no_problem(monkeypatch, version):
    set_version(monkeypatch, version)
    assert triton_path.unfit() is None


def test_without_gpu_the_reason_says_how_to_interpret(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_version(monkeypatch, "3.9.0")
    assert "TRITON_INTERPRET=1" in triton_path.problem()[1]


class Recorder:
    def __init__(self, answer):
        self.answer = answer

    def __getattr__(self, name):
        return lambda *args: self.answer and (name, *args)


@pytest.mark.parametrize("has_native", [True, False])
@pytest.mark.parametrize("has_cuda", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_without_the_compiled_part_takes_triton_by_itself(monkeypatch, gpu, has_cuda, has_native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(native, "record", {"cuda": has_cuda})
    monkeypatch.setattr(triton_path, "problem", lambda: None)
    known = {"stock": Recorder(False), "triton": Recorder(True), **({"native": Recorder(None)} if has_native else {})}
    monkeypatch.setattr(backends, "_BACKENDS", known)
    name, kernels = backends.automatic()
    takes_triton = gpu and not has_cuda
    assert name == ("native" if has_native else "triton" if takes_triton else "stock")
    assert kernels.softmax(1, 2) == (("softmax", 1, 2) if takes_triton else False if not has_native else None)


def test_a_block_gives_back_the_choice_before_it():
    before = backends.choice.name, backends.choice.kernels
    with pytorch_ext.backend("stock"):
        with pytorch_ext.backend("auto"):
            assert backends.choice.name != "stock" or native.library is None
        assert backends.choice.name == "stock"
    assert (backends.choice.name, backends.choice.kernels) == before


CODE = """
import json, torch, pytorch_ext, pytorch_ext.functional as F
x = torch.arange(6.0).reshape(2, 3).requires_grad_()
F.linear(x, torch.ones(4, 3), activation="sigmoid").sum().backward()
print(json.dumps([pytorch_ext.backends.choice.name, x.grad.tolist(), pytorch_ext.available_backends()]))
"""


@needs_interpreter
def test_the_environment_chooses_and_no_native_part_is_needed():
    settings = {"PYTORCH_EXT_BACKEND": "triton", "PYTORCH_EXT_NATIVE": "0", "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    name, gradient, names = json.loads(result.stdout)
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    functional.linear(x, torch.ones(4, 3), activation="sigmoid").sum().backward()
    assert (name, names) == ("triton", ["auto", "stock", "triton"])
    assert_same_bits(torch.tensor(gradient), x.grad)


# What the native library has beside ops: how it was built and runs, and the whole step, which has no twin in Triton.
NO_OPS = {"TrainStep", "apply_function", "available_capabilities", "call_natively", "capability", "free_kept_memory"}
NO_OPS |= {"has_kernels", "is_optimizer_observed", "is_stock_product", "self_test", "self_test_hashes"}
NO_OPS |= {"set_capability", "zero_grad"}


@needs_native
def test_every_function_of_the_native_library_has_a_twin():
    import pytorch_ext.triton_namespace as namespace

    names = {name for name in dir(native.library) if not name.startswith("_")}
    assert names >= NO_OPS | {"linear", "softmax", "adam_step"}
    assert [name for name in sorted(names - NO_OPS) if not callable(getattr(namespace, name, None))] == []


def native_schemas():
    schemas = torch._C._jit_get_all_schemas()
    return {s.name.partition("::")[2]: s for s in schemas if s.name.startswith("pytorch_ext::")}


@needs_native
@needs_interpreter
@pytest.mark.parametrize("name", sorted(native_schemas()))
def test_every_operator_of_the_native_library_has_a_twin_with_its_arguments(name):
    """A launcher in the module of its op; what has derivatives, in the namespace."""
    import pytorch_ext.triton_namespace as namespace

    op = re.sub("_(forward|backward|backward_into|inference|key)$", "", name)
    function = getattr(getattr(triton_path.kernels, op) if op != name else namespace, name)
    expected = [argument.name for argument in native_schemas()[name].arguments]
    if name == "dropout":  # eager, both draw the key themselves
        expected = ["input", "p", "training", "inplace"]
    assert list(inspect.signature(function).parameters) == expected


@needs_native
@needs_interpreter
def test_the_key_of_dropout_is_the_native_library_s():
    for seed in range(3):
        torch.manual_seed(seed)
        key = triton_path.kernels.dropout.dropout_key()
        torch.manual_seed(seed)
        assert key.equal(torch.ops.pytorch_ext.dropout_key())
        given = torch.Generator().manual_seed(seed)
        assert key.equal(triton_path.kernels.dropout.dropout_key(given))
        assert key.equal(torch.ops.pytorch_ext.dropout_key(given.manual_seed(seed)))


@needs_native
@needs_triton_on_cuda
@pytest.mark.parametrize("op", op_cases.OPS)
def test_float32_on_a_device_has_the_bits_of_the_cpu(op):
    with pytorch_ext.backend("native"):
        on_cpu = op_cases.run(op, torch.device("cpu"))
    with pytorch_ext.backend("triton"):
        on_device = op_cases.run(op, torch.device("cuda"))
    for name, tensors in on_cpu.items():
        for i, (ours, expected) in enumerate(zip(on_device[name], tensors, strict=True)):
            assert_same_bits(ours, expected, f"result {i} of {op} {name}")
