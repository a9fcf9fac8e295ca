"""A method compiled again from its own source, with some calls exchanged.

The source counts only where it compiles to the very code that runs: a file edited after its import, a decorator that
wraps, a class made by ``exec`` are refused. Control flow, side effects and whatever the method reads at each call stay
as they are, which a traced graph would freeze.
"""

import __future__

import ast
import copy
import functools
import inspect
import linecache
import sys
import types

HELPERS = "__pytorch_ext__"  # the free variable through which an exchanged call finds its function

# Up to Python 3.10 an inner function's qualified name is a constant, which stands after its code.
NAMES_FOLLOW_CODE = sys.version_info < (3, 11)

_SAME = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")


class Refused(Exception):
    """Why a method cannot be compiled again."""


def undecorated(function):
    """The function that decorators such as ``torch.autocast`` have wrapped: they call what a cell of theirs holds."""
    inner = getattr(function, "__wrapped__", None)
    if not isinstance(inner, types.FunctionType) or inner.__name__ != function.__name__:
        return function
    return undecorated(inner) if cell_of(function, inner) is not None else function


def is_of_a_module(function):
    """Whether it is a plain function of a module, not one of torch's or of this package."""
    if not isinstance(function, types.FunctionType) or "." in function.__qualname__:
        return False
    inner = undecorated(function)
    own = (function.__module__ or "").partition(".")[0] not in ("torch", __package__)
    return own and inner.__closure__ is None and not hasattr(inner, "__wrapped__")


def decorated_alike(made, function):
    """``made`` in the decorators of ``function``, which wrap another one."""
    if undecorated(function) is function:
        return made
    inner = decorated_alike(made, function.__wrapped__)
    closure = [*function.__closure__]
    closure[cell_of(function, function.__wrapped__)] = types.CellType(inner)
    itself = cell_of(function, function)  # a decorator's function may know itself
    if itself is not None:
        closure[itself] = types.CellType()
    outer = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(closure)
    )
    functools.update_wrapper(outer, function)
    outer.__kwdefaults__, outer.__wrapped__ = function.__kwdefaults__, inner
    if itself is not None:
        closure[itself].cell_contents = outer
    return outer


def cell_of(function, held):
    """Which cell of a decorator's function holds another one; None where none does, or it is compiled."""
    if hasattr(function, "_torchdynamo_orig_callable"):
        return None
    cells = enumerate(function.__closure__ or ())
    return next((i for i, cell in cells if cell != types.CellType() and cell.cell_contents is held), None)


def definition(function, owner):
    """The syntax tree of a method of a class named ``owner``, or of a function; proved to be that of its code."""
    tree, why = definition_or_reason(function, owner)
    if why is not None:
        raise Refused(why)
    return tree


@functools.lru_cache(maxsize=4096)
def definition_or_reason(function, owner):
    """(tree, None), or (None, why there is none)."""
    try:
        return proved_definition(function, owner), None
    except Refused as why:
        return None, str(why)


def proved_definition(function, owner):
    if not function.__code__.co_argcount:
        raise Refused("a decorator wraps it")
    try:
        lines, first = inspect.getsourcelines(function)
        head = "if True:\n" if lines[0][:1].isspace() else ""
        tree = ast.parse(head + "".join(lines))
    except (OSError, SyntaxError, TypeError, IndexError) as error:
        raise Refused(f"its source is not available ({type(error).__name__})") from None
    ast.increment_lineno(tree, first - 1 - bool(head))
    found = tree.body[0].body[0] if head else tree.body[0]
    if not isinstance(found, ast.FunctionDef) or found.name != function.__name__:
        raise Refused("its source is no plain function definition")
    guesses = imported_by_value, imported_in_file  # the second takes long in a large file
    if not any(same_code(compiled(found, function, owner, guess), function.__code__) for guess in guesses):
        raise Refused("its source does not compile to the code that runs (a decorator, an edited file)")
    return found


def imported_by_value(function):
    """The global names a function uses that its module has imported, as far as their values tell."""
    for name in names_in(function.__code__):
        value = function.__globals__.get(name)
        elsewhere = getattr(value, "__module__", None) not in (None, function.__module__)
        if isinstance(value, types.ModuleType) or elsewhere:
            yield name


def imported_in_file(function):
    """Those that its file imports by their names; what ``from x import *`` brings is none of them to the compiler."""
    return imports_of(function.__code__.co_filename) & names_in(function.__code__)


@functools.lru_cache(maxsize=256)
def imports_of(file):
    lines = linecache.getlines(file)
    try:
        waiting, names = [ast.parse("".join(outside_of_definitions(lines)))], set()
    except SyntaxError:  # a string over several lines that looks like a definition
        waiting, names = [ast.parse("".join(lines))], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names - {"*"}


def outside_of_definitions(lines):
    """The lines of a file without its functions and classes, which take long to parse."""
    inside = False
    for line in lines:
        if line[:1] not in " \t\n#)]}":
            inside = line.startswith(("def ", "class ", "async ", "@"))
        if not inside:
            yield line


def compiled(tree, function, owner, imported=imported_by_value):
    """The code object of a definition, with the free variables of ``function``."""
    tree = copy.copy(tree)
    tree.decorator_list = []
    free = [name for name in function.__code__.co_freevars if name != "__class__"]
    body = tree
    # Inside a class, for the sake of names like self.__x and of super().
    if function.__qualname__.split(".")[-2:-1] == [owner] or "__class__" in function.__code__.co_freevars:
        body = ast.parse(f"class {owner}: pass").body[0]
        body.body = [tree]
    around = ast.parse(f"def around({', '.join([HELPERS, *free])}): pass")
    # A function of a module that calls itself finds itself among the global names.
    around.body[0].body = [body] if tree.name in free else [ast.Global([tree.name]), body]
    # The compiler calls an attribute of an imported name by other instructions than a method.
    around.body += [ast.parse(f"import {name}").body[0] for name in imported(function)]
    code = compile(
        ast.fix_missing_locations(around),
        function.__code__.co_filename,
        "exec",
        flags=function.__code__.co_flags & __future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    for name in ("around", *([owner] if body is not tree else []), tree.name):
        code = next((c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name), None)
        if code is None:
            raise Refused("its source has another shape than expected")
    return code


def names_in(code):
    """The names of a code object and of those inside it."""
    inner = [names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names}.union(*inner)


def same_code(a, b):
    """Whether two code objects do the same, wherever they stand."""
    if any(getattr(a, name) != getattr(b, name) for name in _SAME) or len(a.co_consts) != len(b.co_consts):
        return False
    after_code = False
    for x, y in zip(a.co_consts, b.co_consts, strict=True):
        if type(x) is not type(y):
            return False
        if after_code and NAMES_FOLLOW_CODE:
            x, y = x.rpartition(".")[2], y.rpartition(".")[2]
        after_code = isinstance(x, types.CodeType)
        if not (same_code(x, y) if after_code else repr(x) == repr(y)):
            return False
    return True


def function_from(tree, function, owner, helpers):
    """``function`` with the body of ``tree``; the name HELPERS means ``helpers`` in it."""
    code = compiled(tree, function, owner)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells[HELPERS] = types.CellType(helpers)
    closure = tuple(cells[name] for name in code.co_freevars)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    functools.update_wrapper(made, function)
    del made.__wrapped__
    made.__kwdefaults__ = function.__kwdefaults__
    return made
