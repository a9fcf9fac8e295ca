"""One computation by everybody who offers it: ``{provider: function of no arguments}``.

A name that begins with "stock" counts for the ratio. Other names stand beside it: what computes less precisely, or what
torch does not call by itself.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pytorch_ext import native


@dataclass
class Within:
    """A function to be timed inside of a context, which is entered for every round."""

    call: Callable
    context: Callable

    def __call__(self):
        return self.call()


def forward(ours, theirs, *inputs):
    """Forward only, no gradient."""
    return {"ours": lambda: ours(*inputs), "stock": lambda: theirs(*inputs)}


def wanted_and_ones(function, inputs):
    return [t for t in inputs if t.requires_grad], torch.ones_like(function(*inputs))


def both(ours, theirs, *inputs):
    """Forward and backward of everything that requires a gradient, from a scalar or an all-ones gradient."""
    wanted, ones = wanted_and_ones(theirs, inputs)

    def call(function):
        return lambda: torch.autograd.grad(function(*inputs), wanted, ones)

    return {"ours": call(ours), "stock": call(theirs)}


def backward(ours, theirs, *inputs):
    """The backward pass alone; the forward pass is that of the first call, when no mode of the maker's is left."""
    wanted, ones = wanted_and_ones(theirs, inputs)

    def call(function):
        outputs = []

        def run():
            outputs or outputs.append(function(*inputs))
            return torch.autograd.grad(outputs, wanted, ones, retain_graph=True)

        return run

    return {"ours": call(ours), "stock": call(theirs)}


def beside(measure, ours, theirs, *inputs, compile=False):
    """Ours and stock by ``measure``, one of the three above, and what torch.compile makes of stock, in seconds."""
    providers = measure(ours, theirs, *inputs)
    if compile:
        torch._dynamo.reset()
        function = torch.compile(lambda *arguments: theirs(*arguments), dynamic=False)
        providers["stock, compiled"] = measure(function, theirs, *inputs)["ours"]
    return providers


@contextlib.contextmanager
def precision(name):
    """Inside, torch may compute float32 products in bfloat16 ("medium")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def instruction_set(name):
    """Inside, our kernels are those of another instruction set."""
    before = native.library.capability()
    native.library.set_capability(name)
    try:
        yield
    finally:
        native.library.set_capability(before)


def in_medium_precision(function):
    return Within(function, lambda: precision("medium"))


def with_avx2(function):
    """``{"AVX2": ...}`` where this processor has it and a wider one."""
    names = native.library.available_capabilities() if native.library else []
    return {"ours, AVX2": Within(function, lambda: instruction_set("avx2"))} if "avx512" in names else {}


def by_onednn(x, weight):
    """The product of a linear layer by oneDNN, which torch takes for bfloat16 only; the operands are its own."""
    if not torch.backends.mkldnn.is_available():
        return {}
    inputs = x.to_mkldnn(), weight.to_mkldnn(), None
    return {"oneDNN": lambda: torch._C._nn.mkldnn_linear(*inputs)}
