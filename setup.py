"""The native part of the package; everything else is in pyproject.toml, the build itself in pytorch_ext/build.py."""

import importlib.util
from pathlib import Path

from setuptools import setup

# By path: importing the package would need torch, which pip's build isolation hides.
spec = importlib.util.spec_from_file_location("build", Path(__file__).resolve().parent / "pytorch_ext" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

setup(**build.setup_arguments())
