"""What the names in a method mean."""

import ast
import builtins
import types

import torch

from . import nn

UNKNOWN = object()


class Names:
    """What the expressions of a method mean for one object, as far as that is known without running anything."""

    def __init__(self, function, module):
        self.function, self.module = function, module
        code = function.__code__
        self.self_name = code.co_varnames[0] if code.co_argcount else None
        self.local = {*code.co_varnames, *code.co_cellvars}
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.outer = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}

    def value(self, node):
        if isinstance(node, ast.Name):
            return self.of_name(node.id)
        if isinstance(node, ast.Attribute):
            return self.of_attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return self.of_item(self.value(node.value), node.slice.value)
        return UNKNOWN

    def of_name(self, name):
        if name == self.self_name:
            return self.module
        if name in self.local:
            return UNKNOWN
        return self.outer.get(name, self.function.__globals__.get(name, vars(builtins).get(name, UNKNOWN)))

    @staticmethod
    def of_attribute(base, name):
        if isinstance(base, torch.nn.Module):
            return base.__dict__.get(name, base._modules.get(name, UNKNOWN))
        return vars(base).get(name, UNKNOWN) if isinstance(base, types.ModuleType) else UNKNOWN

    @staticmethod
    def of_item(base, index):
        if type(base) in (torch.nn.ModuleList, torch.nn.Sequential, nn.Sequential) and isinstance(index, int):
            return base[index] if -len(base) <= index < len(base) else UNKNOWN
        return base._modules.get(index, UNKNOWN) if type(base) is torch.nn.ModuleDict else UNKNOWN
