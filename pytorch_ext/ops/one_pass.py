"""Losses on the Triton path whose forward pass also computes the gradients that the common backward pass asks for.

They are those of ``loss.backward()``, where the gradient of the loss is 1, and the backward pass hands them out. Where
it is given another number, <op>_backward_into writes the gradients for that one over them. On a device, which nobody
waits for, that kernel looks itself, and touches nothing where it finds a 1.
"""

import torch
from torch.compiler import is_dynamo_compiling

from ..triton_path import PLAIN, kernels


def holds_numbers(t):
    """Whether a tensor holds numbers now: tracing replaces tensors by fake ones, and records what a mode sees."""
    return not is_dynamo_compiling() and type(t) in PLAIN and not torch._C._len_torch_dispatch_stack()


def is_one(grad):
    """Whether a loss's gradient is exactly 1, known without waiting for a device."""
    return grad.device.type == "cpu" and grad.numel() == 1 and grad.item() == 1


class InAdvance:
    """Gradients that a forward pass has left, None where it left none."""

    def __init__(self, gradients):
        self.gradients, self.capture = list(gradients), capture_number(gradients)

    def take(self, grad, mask):
        """Those that the mask chooses, each once: who receives it owns it. None where a graph records the forward pass
        without the backward pass or the other way round: replayed alone, a backward pass would meet what its last
        replay left."""
        none = [None] * len(mask)
        if torch.is_grad_enabled() or not holds_numbers(grad):
            return none
        if all(g is None for g in self.gradients) or self.capture != capture_number([grad]):
            return none
        taken = [g if wanted else None for g, wanted in zip(self.gradients, mask, strict=True)]
        self.gradients = [None if wanted else g for g, wanted in zip(self.gradients, mask, strict=True)]
        return taken


def capture_number(tensors):
    """The number of the graph that records the stream of these tensors; None is skipped."""
    given = [t for t in tensors if t is not None]
    return kernels.launch.capture_number(given[0].device) if given else 0


def gradients_of(in_advance, grad, mask, write_over, compute):
    """The gradients that the mask chooses: what the forward pass left, after ``write_over(grad, *left)`` where ``grad``
    may be no 1, and ``compute(mask)`` for the others."""
    left = in_advance.take(grad, mask)
    if any(g is not None for g in left) and not is_one(grad):
        write_over(grad, *left)
    missing = [wanted and found is None for wanted, found in zip(mask, left, strict=True)]
    if not any(missing):
        return left
    return [new if found is None else found for new, found in zip(compute(missing), left, strict=True)]
