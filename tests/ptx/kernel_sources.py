"""Triton's kernels as they stand in the sources: nothing is imported."""

import ast
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "triton_kernels"


class KernelSource(NamedTuple):
    file: str
    lines: int  # from the decorator to the end
    says: str  # the comment above the decorator and the docstring


def comment_above(lines, first):
    """The lines of a comment that ends above line number `first`, counted from 1."""
    end = first - 1
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    return "\n".join(lines[first - 1 : end])


def is_kernel(node):
    decorators = getattr(node, "decorator_list", [])
    return any(getattr(getattr(d, "func", d), "id", "") == "kernel" for d in decorators)


def kernel_sources(folder=FOLDER):
    """{name: source} of every function that is decorated as a kernel."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        text = file.read_text()
        lines = text.splitlines()
        for node in filter(is_kernel, ast.walk(ast.parse(text))):
            first = min(d.lineno for d in node.decorator_list)
            says = comment_above(lines, first) + (ast.get_docstring(node) or "")
            found[node.name] = KernelSource(file.name, node.end_lineno - first + 1, says)
    return found
