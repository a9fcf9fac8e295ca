"""Which paths exist here, and the current choice.

A backend is a namespace: an object with one function per op, named as in ``pytorch_ext.functional``. Such a function
returns its result, or None for arguments it does not cover, which then take the stock operator.
"""

import contextlib
import os

import torch

from . import measured, native, triton_path


class Stock:
    """The namespace that covers nothing: every call takes the stock operators."""

    def __getattr__(self, name):
        return _covers_nothing


def _covers_nothing(*args):
    return None


class FirstOf:
    """The first of two namespaces that covers a call."""

    def __init__(self, first, second):
        self._namespaces = first, second

    def __getattr__(self, name):
        first, second = (getattr(namespace, name) for namespace in self._namespaces)

        def call(*args):
            result = first(*args)
            return second(*args) if result is None else result

        setattr(self, name, call)
        return call


_BACKENDS = {"stock": Stock(), "triton": triton_path.namespace}
if native.library is not None:
    _BACKENDS["native"] = native.library


class Choice:
    """The current choice. ``kernels`` is the namespace the functions call."""

    def __init__(self):
        self.use(os.environ.get("PYTORCH_EXT_BACKEND", "auto"))

    def use(self, name):
        """Make ``name`` the current backend; ``auto`` is the best one that exists here."""
        if name == "auto":
            self.name, self.kernels = automatic()
            return
        if name not in available_backends():
            why = f": {'; '.join(triton_path.problem())}" if name == "triton" else ""
            raise ValueError(f"backend: expected one of {', '.join(available_backends())}, got {name!r}{why}")
        self.name, self.kernels = name, _BACKENDS[name]

    @property
    def takes_triton(self):
        """Whether Triton's kernels take what the native library does not cover on a GPU."""
        return self.name == "triton" or isinstance(self.kernels, FirstOf)


def automatic():
    """(name, namespace) of the best path. On a GPU it is Triton where the native library has no CUDA part; where it has
    one, CUDA C++ or Triton as a table of measurements says, and without a table CUDA C++."""
    library = _BACKENDS.get("native")
    has_cuda = native.record.get("cuda")
    chooses = library is not None and measured.exist()
    on_gpu = (chooses or not has_cuda) and triton_path.unfit() is None and torch.cuda.is_available()
    triton = _BACKENDS["triton"] if on_gpu else None
    if library is None:
        return ("triton", triton) if on_gpu else ("stock", _BACKENDS["stock"])
    if not on_gpu:
        return "native", library
    return "native", (measured.Measured if has_cuda else FirstOf)(library, triton)


def available_backends():
    """Names that :func:`backend` takes on this machine."""
    return ["auto", *(name for name in _BACKENDS if name != "triton" or triton_path.problem() is None)]


choice = Choice()


@contextlib.contextmanager
def backend(name):
    """Run everything inside the block on one path: ``auto``, ``native`` (C++ and CUDA C++), ``triton`` or ``stock``.

    The environment variable ``PYTORCH_EXT_BACKEND`` sets the default. The choice belongs to the process.
    """
    before = choice.name, choice.kernels
    choice.use(name)
    try:
        yield
    finally:
        choice.name, choice.kernels = before
