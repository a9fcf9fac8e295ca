"""``torch.optim`` with this package's kernels: subclasses of the stock optimisers, same options, same state_dict."""

import torch
from torch.optim import *  # noqa: F403
from torch.optim import Optimizer

from . import native
from .backends import choice
from .ops.paths import is_dynamo_compiling

__all__ = ["SGD", "Adam", "AdamW", "clip_grad_norm_"]


def __getattr__(name):
    return getattr(torch.optim, name)


class OneCallStep:
    """An optimiser whose step is one native call per parameter group; ``native_step`` says which.

    A group with ``capturable``, ``differentiable``, ``fused`` or ``foreach`` set, a tensor among its numbers, sparse or
    complex gradients or tensor subclasses takes the stock step, as does every group under ``torch.compile``.
    """

    def step(self, closure=None):
        """Perform one step; ``closure`` re-evaluates the model and returns the loss."""
        if not is_dynamo_compiling() and not is_observed(self):
            return plain_step(self, closure)
        return observed_step(self) if closure is None else observed_step(self, closure)

    # torch wraps every optimiser's step to run hooks and to label profiles, 10 us a call. This mark says that the class
    # does so itself: step() above takes the wrapped way whenever somebody is looking.
    step.hooked = True

    def zero_grad(self, set_to_none=True):
        """``torch.optim.Optimizer.zero_grad``."""
        plain = set_to_none and native.library is not None and choice.name != "stock"
        if not plain or is_dynamo_compiling() or is_profiled():
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            native.library.zero_grad(group["params"])


is_profiled = torch._C._autograd._profiler_enabled
# Whether a hook or the profiler wants to see the step; without the native library every step takes the wrapped way.
is_observed = native.library.is_optimizer_observed if native.library is not None else lambda optimizer: True


def plain_step(self, closure=None):
    """The step itself: every group in one native call, the stock step where a group is not covered."""
    if is_dynamo_compiling() or choice.name == "stock":
        return stock_step(self, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in self.param_groups:
        if not self.native_step(group):
            stock_step_of_group(self, group)
    return loss


observed_step = Optimizer.profile_hook_step(plain_step)


def stock_step(self, closure=None):
    """The stock class's step, without the wrapper torch may have put around it: hooks run once, in observed_step."""
    stock = next(c for c in type(self).__mro__ if c.__module__.startswith("torch.optim.") and "step" in vars(c)).step
    return (stock.__wrapped__ if getattr(stock, "hooked", False) else stock)(self, closure)


def stock_step_of_group(self, group):
    """The stock step on one group only."""
    groups = self.param_groups
    try:
        self.param_groups = [group]
        stock_step(self)
    finally:
        self.param_groups = groups


class SGD(OneCallStep, torch.optim.SGD):
    """``torch.optim.SGD``: all parameters of a group in one call, bit-identical on every path in float32."""

    def native_step(self, group):
        return choice.kernels.sgd_step(group, self.state)


class Adam(OneCallStep, torch.optim.Adam):
    """``torch.optim.Adam``: all parameters of a group in one call, bit-identical on every path in float32."""

    def native_step(self, group):
        return choice.kernels.adam_step(group, self.state)


class AdamW(OneCallStep, torch.optim.AdamW):
    """``torch.optim.AdamW``: all parameters of a group in one call, bit-identical on every path in float32."""

    native_step = Adam.native_step


def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """``torch.nn.utils.clip_grad_norm_``; the 2-norm takes two passes over the gradients, in one native call."""
    tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    if float(norm_type) == 2.0 and not foreach and choice.name != "stock" and not is_dynamo_compiling():
        total = choice.kernels.clip_grad_norm(tensors, float(max_norm), bool(error_if_nonfinite))
        if total is not None:
            return total
    # An empty generator goes on as one: torch warns about it.
    return torch.nn.utils.clip_grad_norm_(tensors or parameters, max_norm, norm_type, error_if_nonfinite, foreach)
