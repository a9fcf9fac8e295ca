"""Syntax trees: copies of them, and calls of this package's helpers."""

import ast

from .recompile import HELPERS


def copied(node):
    """A copy of a syntax tree, in a tenth of the time of copy.deepcopy."""
    if isinstance(node, list):
        return [copied(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    made = type(node).__new__(type(node))
    vars(made).update({name: copied(value) for name, value in vars(node).items()})
    return made


def names_only(targets):
    return all(isinstance(target, ast.Name) for target in targets)


def helper(name, at, arguments, keywords=()):
    """A call of a function of :mod:`pytorch_ext.calls`, standing where ``at`` stood."""
    function = ast.Attribute(ast.Name(HELPERS, ast.Load()), name, ast.Load())
    return ast.copy_location(ast.Call(function, arguments, list(keywords)), at)
