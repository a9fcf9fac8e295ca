"""convert(model): this package's layers in an existing model, in place; revert(model): the model as it was.

A module stays the object it is, with its parameters, hooks and state; only its class is exchanged for one that derives
from it. What runs as one kernel is decided in the class of the module around it, call by call.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch.nn.utils import parametrize

from . import fusion, nn
from .derive import ORIGINAL, SEQUENTIAL, derived, is_derivable
from .methods import TORCH_CLASSES, places_in
from .ops.checks import expect
from .report import Report

MARK = "_pytorch_ext_converted"  # in the state of a module whose class convert has exchanged
# torch's module classes and ours.
TWINS = {
    getattr(torch.nn, name): getattr(nn, name)
    for name in nn.__all__
    if name != "functional" and hasattr(torch.nn, name)
}
STOCK = {ours: stock for stock, ours in TWINS.items()}
REMARKS = {
    torch.nn.Dropout: "other masks than torch's, the same on every device",
    torch.nn.MultiheadAttention: "torch's own operator in its inference fast path",
}


@dataclass
class Row:
    """One module. ``done``: "replaced", "fused", "rewritten", "left", "shared" or "reverted"."""

    path: str
    module: str
    done: str
    detail: str = ""


class ConversionReport(Report):
    """What :func:`convert` or :func:`revert` did, module by module."""

    title = "pytorch_ext.convert"
    row = Row

    def paths(self, done):
        """The paths of the modules with that outcome."""
        return [row.path for row in self.rows if row.done == done]

    def summary(self):
        done = [row.done for row in self.rows]
        counts = [f"{done.count(name)} {name}" for name in dict.fromkeys(done)]
        return ", ".join(counts) or "nothing to do"


@dataclass
class Finding:
    """What is to become of a module: its class afterwards or the reason why it stays, and the calls exchanged in it."""

    path: str
    module: torch.nn.Module
    cls: type
    reason: str = ""
    places: tuple = ()
    shared: bool = False


def convert(model):
    """Give every layer of ``model`` this package's kernels, in place, and return a :class:`ConversionReport`.

    Parameters, keys, hooks, modes and the modules themselves stay the same objects. A Linear and the activation after
    it run as one kernel, in a Sequential and in the methods of a class whose source is available. Modules of classes
    derived from torch's layers, compiled ones and those this package has no kernel for are left, with the reason.
    Raises TypeError for anything but a module; an error on the way leaves the model as it was.
    """
    expect(isinstance(model, torch.nn.Module), "convert", "a torch.nn.Module", type(model).__name__, TypeError)
    findings = list(examine(model, "", None, {}))
    names = [type(finding.module).__name__ for finding in findings]
    changed = [finding.cls is not type(finding.module) for finding in findings]
    changes = [(f.module, f.cls, True) for f, change in zip(findings, changed, strict=True) if change]
    with exchanged_classes(changes):
        fused = fused_products(findings)
        rows = [row_of(*found, fused) for found in zip(findings, names, changed, strict=True)]
    return ConversionReport(row for row in rows if row)


def revert(model):
    """Undo :func:`convert`: every module has its own class again. Returns a :class:`ConversionReport`.

    Layers that were this package's before stay. What another library has derived a class from since (sharding does) is
    left, with the reason. Raises TypeError for anything but a module.
    """
    expect(isinstance(model, torch.nn.Module), "revert", "a torch.nn.Module", type(model).__name__, TypeError)
    found = [(path, module, class_before(module)) for path, module in model.named_modules() if MARK in module.__dict__]
    known = [(path, module, cls) for path, module, cls in found if cls is not type(module)]
    with exchanged_classes([(module, cls, False) for _, module, cls in known]):
        rows = [Row(path, cls.__name__, "reverted") for path, _, cls in known]
        changed = [(path, cls.__name__) for path, module, cls in found if MARK in module.__dict__]
        rows += [Row(*names, "left", "its class was changed after its conversion") for names in changed]
    report = ConversionReport(rows)
    report.title = "pytorch_ext.revert"
    return report


@contextlib.contextmanager
def exchanged_classes(changes):
    """Give every (module, class, marked) its class; where that or the block fails, all of them their own again."""
    before = [(module, type(module), MARK in module.__dict__) for module, _, _ in changes]
    try:
        for change in changes:
            exchange_class(*change)
        yield
    except BaseException:
        for change in before:
            exchange_class(*change)
        raise


def exchange_class(module, cls, marked):
    object.__setattr__(module, "__class__", cls)  # past a __setattr__ of the user's
    if marked:
        module.__dict__[MARK] = True
    else:
        module.__dict__.pop(MARK, None)


# ---- what becomes of each module ------------------------------------------------------------------------------------


def examine(module, path, holder, seen):
    """A Finding for every module, parents first; compiled ones are not entered."""
    cls = type(module)
    if module in seen:
        yield Finding(path, module, cls, f"the same module as {seen[module] or 'the model'}", shared=True)
        return
    seen[module] = path
    closed = is_compiled(module)
    if closed:
        yield Finding(path, module, cls, closed)
        return
    yield finding_of(module, path, holder)
    for name, child in module._modules.items():
        if child is not None:
            yield from examine(child, f"{path}.{name}" if path else name, module, seen)


def is_compiled(module):
    """Why a module and all it holds stay as they are, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript is compiled already: convert before torch.jit"
    if hasattr(type(module), "_opt_mod_attributes") or module.__dict__.get("_compiled_call_impl") is not None:
        return 'compiled already: convert before torch.compile, or torch.compile(model, backend="pytorch_ext")'
    return None


def finding_of(module, path, holder):
    cls = type(module)
    if MARK in module.__dict__ or cls in STOCK:
        return Finding(path, module, cls, "already this package's")
    layer = parametrized_class(module) or cls
    if layer in TWINS:
        if "forward" in module.__dict__:
            return Finding(path, module, cls, "its forward was replaced on the object")
        return Finding(path, module, TWINS[cls] if layer is cls else with_base(cls, TWINS[layer]))
    if cls.__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic")):
        return Finding(path, module, cls, "quantised")
    if isinstance(holder, torch.nn.MultiheadAttention):
        return Finding(path, module, cls, "MultiheadAttention uses its weights itself")
    base = next((base for base in TWINS if base is not torch.nn.Sequential and issubclass(layer, base)), None)
    if base is not None:
        return Finding(path, module, cls, f"a subclass of {base.__name__} may compute something else")
    if isinstance(module, torch.fx.GraphModule):
        return Finding(path, module, cls, "a GraphModule generates its own forward")
    if cls.__module__.partition(".")[0] == "torch" and cls not in TORCH_CLASSES:
        return Finding(path, module, cls, "" if module._modules else "this package has no kernel for it")
    return finding_of_users(module, path)


def finding_of_users(module, path):
    """What is to become of an object of a user's class: its methods may call activations of a Linear's result."""
    cls = type(module)
    places, problem = places_in(module)
    keys = {place.key for place in places}
    if cls.forward is torch.nn.Sequential.forward and cls.__iter__ is torch.nn.Sequential.__iter__:
        keys.add(SEQUENTIAL)
    problem = problem if any(type(child) in TWINS for child in module._modules.values()) else None
    if not keys:
        return Finding(path, module, cls, problem or "")
    if not is_derivable(cls) or parametrize.is_parametrized(module) or "forward" in module.__dict__:
        return Finding(path, module, cls, "no class can be derived from its own unnoticed")
    return Finding(path, module, derived(cls, keys), problem or "", tuple(places))


# ---- parametrized modules: torch gives each a class of its own, derived from the layer's ----------------------------


def parametrized_class(module):
    """The class a parametrized module had before, or None."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else None


def with_base(cls, base):
    """A class like ``cls``, which torch has derived for one parametrized module, derived from another base."""
    original = vars(cls).get(ORIGINAL)
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__", ORIGINAL)}
    if original is not None and original.__bases__ == (base,) and names.keys() <= vars(original).keys():
        return original
    names[ORIGINAL] = cls if original is None else original
    return type(cls)(cls.__name__, (base,), names)


def class_before(module):
    """The class of a converted module before its conversion."""
    cls, layer = type(module), parametrized_class(module)
    if layer is None:
        return STOCK.get(cls) or vars(cls).get(ORIGINAL, cls)
    return with_base(cls, STOCK.get(layer) or vars(layer).get(ORIGINAL, layer))


# ---- the report -----------------------------------------------------------------------------------------------------


def fused_products(findings):
    """What runs in the same kernel as each Linear that has its activation with it, by the Linear."""
    fused = {}
    for finding in findings:
        if getattr(type(finding.module), "forward", None) is nn.Sequential.forward:
            children = list(finding.module)
            for linear, activation in zip(children, children[1:], strict=False):
                if nn.is_fusable(linear) and fusion.kind_of_module(activation):
                    fused[linear] = f"with the {type(activation).__name__} after it"
        for place in finding.places:
            if place.linear is not None and nn.is_fusable(place.linear):
                fused[place.linear] = f"in {place.method}, {place}"
    return fused


def row_of(finding, name, changed, fused):
    """The row of a finding; None for a module that only holds others."""
    module, stock = finding.module, STOCK.get(type(finding.module))
    if finding.shared:
        return Row(finding.path, name, "shared", finding.reason)
    if module in fused and changed:
        return Row(finding.path, name, "fused", fused[module])
    if changed and stock is None and parametrized_class(module) is None:
        calls = [str(place) for place in finding.places if place.linear is None]
        detail = "; ".join([*calls, *([finding.reason] if finding.reason else [])])
        return Row(finding.path, name, "rewritten", detail) if detail else None
    if changed:
        watched = "a hook keeps it apart from what follows" if not fusion.is_unwatched(module) else ""
        return Row(finding.path, name, "replaced", REMARKS.get(stock, watched))
    return Row(finding.path, name, "left", finding.reason) if finding.reason else None
