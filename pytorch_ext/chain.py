"""A model as a chain of layers: what TrainStep can run, found by torch.fx, and the reason where there is no chain."""

import operator

import torch
import torch.fx
import torch.nn.functional as F

from . import fusion, nn


class NotAChain(ValueError):
    """The model is no chain of covered layers; the message says where it leaves the set."""


def chain_of(model):
    """The layers that ``model(input)`` runs, in the form the native TrainStep takes.

    A list of ``("linear", module, name, activation)``, ``("activation", name)``, ``("dropout", module)``,
    ``("softmax", dim, logarithm)``, ``("flatten", start, end)``, ``("reshape", sizes)`` and ``("squeeze", dim)``.
    NotAChain otherwise.
    """
    check_hooks(model)
    if isinstance(model, tuple(MODULES)):
        return layer_of_module(model, "model")
    training, evaluation = (traced_layers(model, mode) for mode in (True, False))
    if training != evaluation:
        raise NotAChain("a forward that does the same in training and evaluation, got one that reads self.training")
    return fused(training)


def places_of(model):
    """Where the model holds its layers: ``(dict, key, name)`` of each on the way to one, and of a Sequential, which may
    grow, ``(dict, None, name)``."""
    modules, places = dict(model.named_modules()), {}
    for name, module in modules.items():
        if name and type(module) in MODULES:
            parents = name.split(".")
            for depth, key in enumerate(parents):
                owner, path = modules[".".join(parents[:depth])], ".".join(parents[: depth + 1])
                places[path] = owner._modules, key, path
                if isinstance(owner, torch.nn.Sequential):
                    places[path, "owner"] = owner._modules, None, ".".join(parents[:depth])
    return list(places.values())


def traced_layers(model, training):
    """The layers of the model's forward in that mode; the model's own modes stay."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = training
        with fusion.one_by_one():
            graph = LayerTracer().trace(model)
    except Exception as error:  # whatever a user's forward raises when it is traced
        raise NotAChain(f"a forward that torch.fx can trace, got {type(error).__name__}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    modules = dict(model.named_modules())
    layers, current = [], None
    for node in graph.nodes:
        if node.op == "placeholder":
            if current is not None:
                if node.args:  # has a default, which tracing has used
                    continue
                raise NotAChain(f"a forward of one input, got another one, {node.target}")
            current = node
        elif node.op == "output":
            if node.args[0] is not current:
                raise NotAChain(f"a forward that returns the last layer's output, got {node.args[0]}")
        elif not is_size(node):
            layers += layer_of(node, current, modules)
            current = node
    return layers


def check_hooks(model):
    """Hooks would not run."""
    for name, module in model.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind, None) for kind in kinds):
            raise NotAChain(f"modules without hooks, got hooks on {name or 'the model'}")


class LayerTracer(torch.fx.Tracer):
    """Does not look into the layers of the package."""

    def is_leaf_module(self, module, name):
        return isinstance(module, tuple(MODULES)) or super().is_leaf_module(module, name)


def is_size(node):
    """Whether the node asks for a tensor's shape, which reshapes are written with."""
    if node.op == "call_method":
        return node.target == "size"
    return is_size(node.args[0]) if node.target is operator.getitem else node.target is getattr


def layer_of(node, current, modules):
    """The layers of one node, which must take the output of the node before."""
    what = f"{node.target} ({node.op.removeprefix('call_')})"
    if not node.args or node.args[0] is not current:
        raise NotAChain(f"a chain, in which every layer takes the output of the one before, got {what}")
    if node.op == "call_module":
        return layer_of_module(modules[node.target], node.target)
    describe = (FUNCTIONS if node.op == "call_function" else METHODS).get(node.target)
    if describe is None:
        raise NotAChain(f"layers and functions that it knows, got {what}")
    return describe(*node.args[1:], **node.kwargs)


def layer_of_module(module, name):
    describe = MODULES.get(type(module))
    if describe is None:
        raise NotAChain(f"layers that it knows, got {name}, a {type(module).__qualname__}")
    return describe(module, name)


def linear(module, name):
    activation = getattr(module, "activation", None) or "none"
    return [("linear", module, name, activation)]


def softmax(dim, logarithm, name):
    if not isinstance(dim, int):
        raise NotAChain(f"a softmax with its dim given, got dim={dim} in {name}")
    return [("softmax", dim, logarithm)]


def activation(kind):
    """The layer of an activation that fusion names so; gelu says itself which of the two it is."""
    if kind != "gelu":
        return lambda *options, **keywords: [("activation", kind)]
    return lambda approximate="none": [("activation", fusion.GELU[approximate])]


def softmax_function(logarithm):
    def describe(dim=None, _stacklevel=3, dtype=None):
        if dtype is not None:
            raise NotAChain(f"a softmax in the dtype of its input, got dtype={dtype}")
        return softmax(dim, logarithm, "a function")

    return describe


def flatten(start_dim=0, end_dim=-1):
    return [("flatten", start_dim, end_dim)]


def reshape(*sizes):
    """Sizes that are numbers; or the batch's own size, then -1, which flattens."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if len(sizes) == 2 and isinstance(sizes[0], torch.fx.Node) and sizes[1] == -1 and batch_size(sizes[0]):
        return [("flatten", 1, -1)]
    if not all(isinstance(size, int) for size in sizes):
        raise NotAChain(f"a reshape to numbers, or to (x.size(0), -1), got {sizes}")
    return [("reshape", sizes)]


def squeeze(dim=None):
    if not isinstance(dim, int):
        raise NotAChain(f"a squeeze of one dimension, got dim={dim}")
    return [("squeeze", dim)]


def batch_size(node):
    """Whether the node is ``x.size(0)`` or ``x.shape[0]``."""
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    return node.target is operator.getitem and node.args[1] == 0


def activation_module(kind):
    return lambda module, name: activation(kind)(*([module.approximate] if kind == "gelu" else []))


LAYERS = {
    "Linear": linear,
    "Dropout": lambda module, name: [("dropout", module)],
    "Softmax": lambda module, name: softmax(module.dim, False, name),
    "LogSoftmax": lambda module, name: softmax(module.dim, True, name),
    "Flatten": lambda module, name: flatten(module.start_dim, module.end_dim),
    "Identity": lambda module, name: [],
    **{cls.__name__: activation_module(kind) for cls, kind in fusion.MODULES.items()},
}
MODULES = {getattr(ns, name): describe for name, describe in LAYERS.items() for ns in (torch.nn, nn)}
FUNCTIONS = {
    **{function: activation(kind) for function, kind in fusion.FUNCTIONS.items()},
    **dict.fromkeys((torch.softmax, F.softmax), softmax_function(False)),
    **dict.fromkeys((torch.log_softmax, F.log_softmax), softmax_function(True)),
    torch.flatten: flatten,
    torch.reshape: reshape,
    torch.squeeze: squeeze,
}
METHODS = {
    **{name: activation(kind) for name, kind in fusion.METHODS.items()},
    "softmax": softmax_function(False),
    "log_softmax": softmax_function(True),
    "flatten": flatten,
    "reshape": reshape,
    "view": reshape,
    "squeeze": squeeze,
    "contiguous": lambda: [],
}


def fused(layers):
    """An activation that follows a Linear becomes a part of it, as in one kernel: the bits are the same."""
    result = []
    for layer in layers:
        if layer[0] == "activation" and result and result[-1][0] == "linear" and result[-1][3] == "none":
            result[-1] = (*result[-1][:3], layer[1])
        else:
            result.append(layer)
    return result
