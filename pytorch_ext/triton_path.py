"""The Triton path: whether it can run here, and its kernels, imported at their first use."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import torch
from packaging.version import Version
from torch.compiler import is_dynamo_compiling

MINIMUM = "3.6"  # the oldest that the tests have run with
INSTALL = f"pip install 'triton>={MINIMUM}'"
PACKAGE = f"{__package__}.triton_kernels"


def find_kernels():
    """The kernels as a part of this package: installed, or from the folder beside it in a plain checkout."""
    if PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is not None:
        return
    folder = Path(__file__).resolve().parent.parent / "triton_kernels"
    if (folder / "__init__.py").is_file():
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])


find_kernels()


def is_interpreted():
    """Whether kernels run in Triton's interpreter, on tensors of any device; decided when Triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def triton_version():
    """The version of the installed Triton, or None."""
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def unfit():
    """(reason, cure) where Triton or the kernels are missing, or Triton is too old; else None."""
    version = triton_version()
    if version is None or importlib.util.find_spec("triton") is None:
        return f"there is no package named triton, version {MINIMUM} or newer is needed", INSTALL
    if Version(Version(version).public) < Version(MINIMUM):
        return f"this is Triton {version}, version {MINIMUM} or newer is needed", INSTALL
    if importlib.util.find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not found", "pip install --no-build-isolation --editable ."
    return None


def missing_device():
    """(reason, cure) where torch finds no GPU, which other paths need too; else None."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch"
    return "torch finds no CUDA device", "a machine with an NVIDIA GPU and its driver"


def problem():
    """(reason, cure) where no kernel can run here, or None."""
    lacks = None if is_interpreted() else missing_device()
    if lacks:
        lacks = lacks[0], f"{lacks[1]}; to interpret, TRITON_INTERPRET=1"
    return unfit() or lacks


class Modules:
    """The modules of a package as attributes, imported at their first use."""

    def __init__(self, package):
        self._package = package

    def __getattr__(self, name):
        module = importlib.import_module(f"{self._package}.{name}")
        setattr(self, name, module)
        return module


kernels = Modules(PACKAGE)


def launcher(name):
    """The function of that name, in the module of its op."""

    def call(*arguments, **options):
        module = getattr(kernels, name.removesuffix("_inference").removesuffix("_forward").removesuffix("_backward"))
        return getattr(module, name)(*arguments, **options)

    return call


def whole(result):
    """Tensors that are no views, which could not be changed in place where an autograd.Function returned them."""
    if isinstance(result, tuple):
        return tuple(map(whole, result))
    if isinstance(result, torch.Tensor) and result._is_view():
        return torch.ops.aten._unsafe_view(result, result.shape)
    return result


class Launchers:
    """What launches kernels, <op>_forward and <op>_backward say; as registered operators where a compiler traces."""

    def __getattr__(self, name):
        at_once, operator = launcher(name), getattr(torch.ops.pytorch_ext_triton, name)

        def call(first, *arguments, **options):
            traced = is_dynamo_compiling() or type(first) not in PLAIN or torch._C._len_torch_dispatch_stack()
            if traced:
                return operator(first, *arguments, **options)
            return whole(at_once(first, *arguments, **options))

        setattr(self, name, call)
        return call


launchers = Launchers()
PLAIN = (torch.Tensor, torch.nn.Parameter)


class Namespace:
    """The functions of :mod:`pytorch_ext.triton_namespace`, which imports the pages of the ops."""

    def __getattr__(self, name):
        function = getattr(importlib.import_module(f"{__package__}.triton_namespace"), name)
        setattr(self, name, function)
        return function


namespace = Namespace()
