"""The compiled part of the package: `library` is the module, or None with a `reason` and a `cure`."""

import contextlib
import importlib
import json
import os
import platform
import warnings
from pathlib import Path

import torch
from packaging.version import InvalidVersion, Version

from . import build
from .version import __version__

BUILD = build.CURE
FOLDER = Path(__file__).resolve().parent


def same_version(built: str, running: str) -> bool:
    """Public and local part: the C++ interface may change with either."""
    try:
        return Version(built) == Version(running)
    except InvalidVersion:  # a torch built from a branch with a name of its own
        return built == running


def misfit(record: dict):
    """Why the library that `record` describes cannot be loaded here, or None."""
    if record.get("pytorch_ext") != __version__:  # pip leaves a library behind that it did not install
        return f"it belongs to pytorch_ext {record.get('pytorch_ext')}, this is {__version__}"
    python = ".".join(platform.python_version_tuple()[:2])
    if not same_version(str(record.get("torch")), torch.__version__):
        return f"it was built with torch {record.get('torch')}, this is torch {torch.__version__}"
    if record.get("python") != python:
        return f"it was built for Python {record.get('python')}, this is Python {python}"
    with contextlib.suppress(OSError, build.BuildError):  # without sources nothing can have changed
        if record.get("interface") != build.interface():
            return "it was built from other C++ sources than those that lie here now"
    return None


def read_record():
    """(what the library was built with, why that is unknown): {} and no reason where nothing was built."""
    try:
        record = json.loads((FOLDER / "_native.json").read_text())
        return (record, None) if record and isinstance(record, dict) else ({}, "_native.json records no build")
    except FileNotFoundError:
        built = any(FOLDER.glob("_native.*.so"))
        return {}, "_native.json, the record of its build, is missing" if built else None
    except (OSError, ValueError) as error:
        return {}, f"_native.json cannot be read ({error})"


def load():
    """(library, record, reason, cure). A library that is there but does not fit gives one warning, never a crash."""
    if os.environ.get("PYTORCH_EXT_NATIVE") == "0":
        return None, {}, "switched off by PYTORCH_EXT_NATIVE=0", "unset PYTORCH_EXT_NATIVE"
    record, problem = read_record()
    if not record and not problem:
        return None, {}, "the native part was not built", BUILD
    problem = problem or misfit(record)
    if not problem:
        try:
            library = importlib.import_module("pytorch_ext._native")
            wrong = library.self_test()
            if not wrong:
                return library, record, None, None
            problem = f"its self-test failed: {wrong} differs from the specification on {library.capability()}"
        except Exception as error:  # whatever a damaged library raises, stock operators still work
            problem = f"it cannot be loaded ({type(error).__name__}: {error})"
    warnings.warn(f"pytorch_ext: the native part is not used: {problem}. Cure: {BUILD}", stacklevel=2)
    return None, record, f"the native part is not used: {problem}", BUILD


library, record, reason, cure = load()
