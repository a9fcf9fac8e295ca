"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for this package's operators: products, as for torch's.

The formulas are registered when that module is imported, which takes half a second, or at once where it has been.
"""

import importlib.abc
import importlib.machinery
import math
import sys

import torch

from . import native

COUNTER = "torch.utils.flop_counter"
NAMESPACES = ("pytorch_ext", "pytorch_ext_triton")


def product(factors, count=1):
    return 2 * count * math.prod(factors)


def linear(input, weight, *_, out_shape):
    return product((*input, weight[0]))


def linear_backward(grad, input, weight, saved, activation, mask, *, out_shape):
    return product((*input, weight[0]), sum(mask[:2]))


def matmul(input, other, *_, out_shape):
    return product((*out_shape, input[-1]))


def matmul_backward(grad, input, other, mask, *, out_shape):
    return product((*grad, input[-1]), sum(mask))


def attention(query, key, value, *_, out_shape):
    return product((*out_shape[:-1], key[-2], query[-1] + value[-1]))


def attention_backward(grad, query, key, value, *_, out_shape):
    """The scores again, then their gradient and those of the three arguments."""
    return product((*grad[:-1], key[-2], 3 * query[-1] + 2 * value[-1]))


def linear_cross_entropy(input, weight, *options, out_shape):
    mask = options[-1] if isinstance(options[-1], list | tuple) else ()
    return product((*input, *weight[:-1]), 1 + sum(mask[:2]))


def linear_cross_entropy_backward(grad, input, weight, *options, out_shape):
    return linear_cross_entropy(input, weight, *options, out_shape=out_shape)


FORMULAS = {
    **dict.fromkeys(("linear_inference", "linear_forward"), linear),
    "linear_backward": linear_backward,
    "matmul_forward": matmul,
    "matmul_backward": matmul_backward,
    "scaled_dot_product_attention_forward": attention,
    "scaled_dot_product_attention_backward": attention_backward,
    **dict.fromkeys(("linear_cross_entropy_inference", "linear_cross_entropy_forward"), linear_cross_entropy),
    "linear_cross_entropy_backward": linear_cross_entropy_backward,
}


def register(counter):
    """Tell torch's counter the formulas of the operators that are there."""
    for namespace in NAMESPACES if native.library is not None else NAMESPACES[1:]:
        for name, formula in FORMULAS.items():
            operator = getattr(getattr(torch.ops, namespace), name, None)
            if operator is not None and operator not in counter.flop_registry:
                counter.register_flop_formula(operator)(formula)


class WhenImported(importlib.abc.MetaPathFinder):
    """Calls :func:`register` once torch's module has been imported."""

    def find_spec(self, name, path, target=None):
        if name != COUNTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                register(module)

            spec.loader.exec_module = exec_module
        return spec


def make_known():
    """See that torch's counter knows the formulas, without importing it."""
    if COUNTER in sys.modules:
        register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, WhenImported())
