"""``torch.compile(model, backend="pytorch_ext")``: this package's kernels in the captured graph.

Products take their activations with them, torch's functions become this package's; the graph then goes on to another
backend. A converted model needs none of this: its calls are in the graph already.
"""

import importlib.metadata
import operator
import sys

import torch
import torch.nn.functional as F

from . import calls, functional, fusion
from .ops.checks import expect
from .version import __version__

NAME = "pytorch_ext"
THEN = "inductor"
OPERATOR = "pytorch_ext::linear"  # in the graph of a converted model


def compile_graph(graph_module, example_inputs, *, options=None, mode=None):
    """A backend of ``torch.compile``. ``options={"then": name}`` names the backend that compiles the changed graph:
    ``"inductor"`` (the default, which takes ``mode`` and further options too), ``"aot_eager"``, ``"eager"`` and others.
    """
    from torch._dynamo.backends.registry import lookup_backend

    rest = dict(options or {})
    compiler = lookup_backend(rest.pop("then", THEN))
    exchange(graph_module)
    given = {name: value for name, value in (("options", rest), ("mode", mode)) if value}
    if given and compiler is lookup_backend("inductor"):
        return torch._TorchCompileInductorWrapper(mode, rest, None)(graph_module, example_inputs)
    expect(not given, "torch.compile", "options and mode only with inductor", ", ".join(given), ValueError)
    return compiler(graph_module, example_inputs)


def exchange(graph_module):
    """Change the graph in place: fused products, and this package's functions."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        kind = activation_of(node)
        if kind is not None and is_plain_product(node.args[0]):
            fuse(graph, node.args[0], node, kind)
    for node in graph.nodes:
        twin = twin_of(node)
        if twin is not None and calls.takes(twin, len(node.args), node.kwargs):
            node.op, node.target = "call_function", twin
    graph_module.recompile()


def fuse(graph, product, activation, kind):
    """One node for a product and its activation."""
    given = dict(zip(("input", "weight", "bias"), product.args, strict=False)) | product.kwargs
    with graph.inserting_before(activation):
        fused = graph.call_function(functional.linear, (given["input"], given["weight"], given.get("bias")))
    fused.kwargs = {"activation": kind}
    fused.meta = activation.meta.copy()
    activation.replace_all_uses_with(fused)
    graph.erase_node(activation)
    graph.erase_node(product)


def activation_of(node):
    """The kind of an activation that takes nothing but a node, or None."""
    if len(node.args) != 1 or not isinstance(node.args[0], torch.fx.Node):
        return None
    if node.op == "call_method":
        return None if node.kwargs else fusion.METHODS.get(node.target)
    plain = node.op == "call_function" and type(node.target) in fusion.FUNCTION_TYPES
    return fusion.kind_of(node.target, node.kwargs) if plain else None


def is_plain_product(node):
    """Whether a node is a product without an activation, whose value nobody but one activation reads."""
    if node.op != "call_function" or len(node.users) != 1:
        return False
    ours = getattr(node.target, "_qualified_op_name", "") == OPERATOR
    return node.args[3:] == ("none",) if ours else node.target is F.linear


def twin_of(node):
    """This package's function for what a node calls, or None."""
    if node.op == "call_method":
        return calls.TENSOR_METHODS.get(node.target) or (functional.matmul if node.target == "__matmul__" else None)
    if node.op != "call_function":
        return None
    if node.target is operator.matmul:
        return functional.matmul
    return calls.TWINS.get(node.target) if type(node.target) in fusion.FUNCTION_TYPES else None


# ---- the name of the backend ----------------------------------------------------------------------------------------


class Checkout(importlib.metadata.Distribution):
    """What an installation would tell about this package: torch finds the backend's name there."""

    def read_text(self, filename):
        return {
            "METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {__version__}\n",
            "entry_points.txt": f"[torch_dynamo_backends]\n{NAME} = {__name__}:{compile_graph.__name__}\n",
        }.get(filename)

    def locate_file(self, path):
        raise FileNotFoundError(path)


class CheckoutFinder(importlib.metadata.DistributionFinder):
    """Finds :class:`Checkout`, after every installed distribution of the name."""

    def find_spec(self, *arguments):
        return None

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):  # noqa: B008
        return [Checkout()] if context.name in (None, NAME) else []


def make_known():
    """See that torch.compile knows the backend by its name, without importing its compiler."""
    registry = sys.modules.get("torch._dynamo.backends.registry")
    if registry is None:
        sys.meta_path.append(CheckoutFinder())
    elif NAME not in registry._BACKENDS:
        registry.register_backend(compile_graph, name=NAME)
