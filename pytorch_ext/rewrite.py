"""A method's syntax tree, in which a Linear and the activation called on its result become one call.

``relu(linear(x))`` becomes ``activate(relu, linear, x)``, two statements ``h = linear(x)``, ``y = relu(h)`` likewise
where nothing else reads ``h``; torch's functions become this package's. Whether the objects met are such, each call
decides.
"""

import ast
import contextlib
import functools
import linecache
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import calls, fusion, nn
from .candidates import LOSS_FUNCTION, function_may_call_ours, is_attention_table, losses_of
from .names import UNKNOWN, Names
from .recompile import Refused, decorated_alike, definition, function_from, is_of_a_module, undecorated
from .syntax import copied, helper, names_only


@dataclass(frozen=True)
class Place:
    """A call that is exchanged. ``linear`` is the module it was found to call, None where only the call knows."""

    method: str
    where: tuple  # first line and column, last line and column
    what: str
    file: str
    linear: object = None

    @property
    def key(self):
        return self.method, self.where, self.what

    def __str__(self):
        first, column, last, end = self.where
        lines = [linecache.getline(self.file, n).encode() for n in range(first, last + 1)]
        lines[-1], lines[0] = lines[-1][:end], lines[0][column:] if first < last else lines[0][:end][column:]
        text = " ".join(line.decode(errors="replace").strip() for line in lines)
        return f"line {first}: {text}"


class Exchange(ast.NodeTransformer):
    """Exchanges the calls of one method; ``places`` has them. With ``wanted``, only those of these keys."""

    def __init__(self, function, module=None, wanted=None):
        self.function, self.wanted, self.places = function, wanted, []
        self.names = Names(function, module)

    def take(self, node, what, linear=None):
        where = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        place = Place(self.function.__name__, where, what, self.function.__code__.co_filename, linear)
        if self.wanted is not None and place.key not in self.wanted:
            return False
        self.places.append(place)
        return True

    def value(self, node, otherwise):
        """What an expression means; where the places are known already, what is hoped for."""
        return self.names.value(node) if self.wanted is None else otherwise

    # ---- which calls ------------------------------------------------------------------------------------------------

    def calls_linear(self, node):
        """(whether ``node`` is ``linear(input)`` with what is or may be a Linear, that module or None)."""
        if (
            not isinstance(node, ast.Call)
            or len(node.args) != 1
            or node.keywords
            or isinstance(node.args[0], ast.Starred)
        ):
            return False, None
        if self.wanted is not None:
            return True, None
        module = self.names.value(node.func)
        if module is UNKNOWN:  # an element of a list, say
            return isinstance(node.func, ast.Name | ast.Subscript), None
        return getattr(type(module), "forward", None) in (torch.nn.Linear.forward, nn.Linear.forward), module

    def is_activation(self, node, keywords):
        """Whether the expression is an activation, called with such keywords; None where only the call knows."""
        if not all(keyword.arg and isinstance(keyword.value, ast.Constant) for keyword in keywords):
            return False
        if self.wanted is not None:
            return True
        value = self.names.value(node)
        if value is UNKNOWN and isinstance(node, ast.Name | ast.Subscript):  # an element of a ModuleDict, say
            return None
        return type(value) in fusion.MODULES or (type(value) in fusion.FUNCTION_TYPES and value in fusion.FUNCTIONS)

    def activation_of(self, node):
        """(activation or method name, argument, keywords) of ``relu(argument)`` or ``argument.relu()``; else None."""
        if not isinstance(node, ast.Call):
            return None
        keywords = [*node.keywords, *self.inplace_of(node)]
        if len(node.args) == 1 + len(keywords) - len(node.keywords):
            if self.is_activation(node.func, keywords) is not False:
                return node.func, node.args[0], keywords
        by_method = isinstance(node.func, ast.Attribute) and node.func.attr in fusion.METHODS
        if by_method and not node.args and not node.keywords:
            return ast.Constant(node.func.attr), node.func.value, []
        return None

    @functools.cached_property
    def holds_both(self):
        """Whether there are lists of Linears and of activations, so that a call of unknown ones may be of theirs."""
        lists = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential, nn.Sequential)
        children = getattr(self.names.module, "_modules", {}).values()
        held = [child for child in children if type(child) in lists]
        classes = {type(module) for child in held for module in child._modules.values()}
        return bool(classes & {torch.nn.Linear, nn.Linear}) and bool(classes & fusion.MODULES.keys())

    def inplace_of(self, node):
        """The second argument of ``F.relu(x, True)`` as a keyword."""
        if len(node.args) != 2 or not isinstance(node.args[1], ast.Constant):
            return []
        value = self.value(node.func, F.relu)
        known = type(value) in fusion.FUNCTION_TYPES and value in (F.relu, F.silu)
        return [ast.keyword("inplace", node.args[1])] if known else []

    def fused(self, node, product):
        """``node``, an activation of ``product``, as one call; None where it is not to be."""
        activation, _, keywords = self.activation_of(node)
        possible, linear = self.calls_linear(product)
        if not isinstance(activation, ast.Constant) and self.is_activation(activation, keywords) is None:
            possible, linear = linear is not None or self.holds_both, None
        if not possible or not self.take(node, "activation", linear):
            return None
        name = "activate_by_method" if isinstance(activation, ast.Constant) else "activate"
        return helper(name, node, [activation, product.func, product.args[0]], keywords)

    # ---- the visits -------------------------------------------------------------------------------------------------

    def visit_Call(self, node):
        found = self.activation_of(node)
        if found and self.calls_linear(found[1])[0]:
            exchanged = self.fused(node, found[1])
            if exchanged is not None:
                return self.generic_visit(exchanged)
        node = self.generic_visit(node)
        if any(isinstance(a, ast.Starred) for a in node.args):
            return node
        attribute = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if attribute == "get_interface":
            return self.from_table(node, node.func.value, node.args[1:])
        return self.loss(node) if attribute == LOSS_FUNCTION else self.twin(node)

    def visit_Subscript(self, node):
        node = self.generic_visit(node)
        return self.from_table(node, node.value, []) if isinstance(node.ctx, ast.Load) else node

    def twin(self, node):
        """This package's function for torch's."""
        keywords = [k.arg for k in node.keywords if k.arg]
        value = self.names.value(node.func)
        plain = learned(value)
        value = value if self.wanted is None else None
        twin = calls.TWINS.get(value) if type(value) in calls.KINDS else None
        if isinstance(value, type) and id(node) not in self.for_a_moment:  # a layer that the object may keep
            twin = None
        if len(keywords) < len(node.keywords):  # **others
            twin = twin if plain or value in calls.WHOLE else None
            if twin is None and self.wanted is None:
                return node
        if self.wanted is not None or (twin is not None and calls.takes(twin, len(node.args), keywords)):
            if self.take(node, "function"):
                node.func = helper("ours", node.func, [node.func])
                return node
        if isinstance(node.func, ast.Attribute) and node.func.attr in calls.TENSOR_METHODS:
            of_tensor = calls.takes(calls.TENSOR_METHODS[node.func.attr], 1 + len(node.args), keywords)
            unknown = self.value(node.func.value, UNKNOWN) is UNKNOWN
            if of_tensor and unknown and self.take(node, "method"):
                node.func = helper("method", node.func, [node.func.value, ast.Constant(node.func.attr)])
        return node

    def from_table(self, node, table, otherwise):
        """What ``node`` takes from transformers' table of attention functions, with this package's kernels."""
        table = self.names.value(table)
        if not is_attention_table(table) or not self.take(node, "attention"):
            return node
        for function in (*table.values(), *map(self.names.value, otherwise)):
            learn(function)
        return helper("ours", node, [node])

    def loss(self, node):
        """The loss of a model of transformers, which a property chooses."""
        losses = losses_of(self.names.module if self.wanted is None else None)
        if losses and self.take(node, "loss"):
            for function in losses:
                learn(function)
            node.func = helper("ours", node.func, [node.func])
        return node

    def visit_BinOp(self, node):
        taken = isinstance(node.op, ast.MatMult) and self.take(node, "function")
        node = self.generic_visit(node)
        return helper("matmul", node, [node.left, node.right]) if taken else node

    def visit_inner(self, node):
        """A function inside the method has names of its own, which are not counted: no statements are joined there."""
        plain, self.names_are_plain = self.names_are_plain, self.names_are_plain and node is self.root
        node = self.generic_visit(node)
        self.names_are_plain = plain
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_inner

    def generic_visit(self, node):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and self.names_are_plain:
                setattr(node, field, self.joined(statements))
        return super().generic_visit(node)

    def joined(self, statements):
        """``h = linear(x)`` and the statement after it, which applies an activation to h, as one."""
        result = []
        for statement in statements:
            if result and isinstance(statement, ast.Assign | ast.Return) and self.reads_only(result[-1], statement):
                exchanged = self.fused(statement.value, result[-1].value)
                if exchanged is not None:
                    statement.value = exchanged
                    result.pop()
            result.append(statement)
        return result

    def reads_only(self, first, second):
        """Whether ``second`` applies an activation to the name that ``first`` assigns a product to, its only use."""
        if not isinstance(first, ast.Assign) or len(first.targets) != 1 or not isinstance(first.targets[0], ast.Name):
            return False
        found = self.activation_of(second.value)
        name = first.targets[0].id
        if (
            not found
            or not isinstance(found[1], ast.Name)
            or found[1].id != name
            or not self.calls_linear(first.value)[0]
        ):
            return False
        code = self.function.__code__
        if name not in code.co_varnames or name in code.co_cellvars:  # another function or the module sees it
            return False
        targets = second.targets if isinstance(second, ast.Assign) else []
        if len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == name:
            return True
        return isinstance(second, ast.Return) or self.loads[name] == 1

    def run(self, tree):
        """The tree with its calls exchanged."""
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        changed = [node.target for node in ast.walk(tree) if isinstance(node, ast.AugAssign)]
        loads = [node.id for node in names if not isinstance(node.ctx, ast.Store) or node in changed]
        self.loads = {name: loads.count(name) for name in loads}
        # A handler, or a look at all names, could read what a statement left out would have assigned.
        handlers = any(type(node).__name__ in ("Try", "TryStar") for node in ast.walk(tree))
        self.names_are_plain = not handlers and not {"locals", "vars", "eval", "exec", "dir"} & self.loads.keys()
        self.root = copied(tree)
        # Modules made to be called at once, or from a name of the method's own.
        nodes = [*ast.walk(self.root)]
        made = [node.func for node in nodes if isinstance(node, ast.Call)]
        made += [node.value for node in nodes if isinstance(node, ast.Assign) and names_only(node.targets)]
        self.for_a_moment = {id(node) for node in made}
        return self.visit(self.root)


_LEARNED = set()


def learn(function):
    """Let this package's function for a plain one be the same, with its calls exchanged."""
    if isinstance(function, types.FunctionType) and function not in _LEARNED and function not in calls.TWINS:
        calls.TWINS[function] = function  # while its own calls are looked at: it may be among them
        changed = with_exchanged_calls(function)
        _LEARNED.add(function)
        if changed is not function:
            calls.TWINS[function] = changed
        else:
            del calls.TWINS[function]


def learned(function):
    """Whether that is a plain function of a module, which has been or can be learned."""
    if not is_of_a_module(function) or not function_may_call_ours(undecorated(function)):
        return False
    learn(function)
    return function in calls.TWINS


def with_exchanged_calls(function):
    inner = undecorated(function)
    with contextlib.suppress(Refused):
        exchange = Exchange(inner, UNKNOWN)
        tree = exchange.run(definition(inner, None))
        if exchange.places:
            return decorated_alike(function_from(tree, inner, None, calls), function)
    return function
