"""``torch.optim`` with this package's kernels: subclasses of the stock optimisers, same options, same state_dict."""

import torch
from torch.optim import *  # noqa: F403
from torch.optim import Optimizer, optimizer

from . import native
from .backends import choice
from .ops.paths import is_dynamo_compiling

__all__ = ["SGD", "Adam", "AdamW", "clip_grad_norm_"]


def __getattr__(name):
    return getattr(torch.optim, name)


class OneCallStep:
    """An optimiser whose step is one native call per parameter group; ``native_step`` says how.

    Sparse or complex gradients, ``capturable``, ``differentiable``, ``fused`` and ``foreach``, a tensor ``lr``, tensor
    subclasses and ``torch.compile`` take the stock step.
    """

    def step(self, closure=None):
        """Perform one step; ``closure`` re-evaluates the model and returns the loss."""
        return observed_step(self, closure) if is_observed(self) else plain_step(self, closure)

    # torch wraps every optimiser's step to run hooks and to label profiles, 10 us a call. This mark says that the class
    # does so itself: step() above takes the wrapped way whenever somebody is looking.
    step.hooked = True

    def zero_grad(self, set_to_none=True):
        """``torch.optim.Optimizer.zero_grad``."""
        if not set_to_none or native.library is None or is_dynamo_compiling():
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            native.library.zero_grad(group["params"])


def covers_step(self):
    """Whether the kernels implement the options of every group."""
    if choice.name == "stock" or native.library is None or is_dynamo_compiling():
        return False
    for group in self.param_groups:
        if group.get("differentiable") or group.get("capturable") or group.get("fused") or group.get("foreach"):
            return False
        if isinstance(group["lr"], torch.Tensor) or isinstance(group.get("betas", (0,))[0], torch.Tensor):
            return False
    return True


def is_observed(self):
    """Whether a hook or the profiler wants to see the step."""
    return (
        self._optimizer_step_pre_hooks
        or self._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )


def plain_step(self, closure):
    """The step itself: every group in one native call, the stock step where a group is not covered."""
    if not covers_step(self):
        return stock_step(self, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in self.param_groups:
        done = self.native_step(group)
        if done == "missing":
            self.initialise_state(group)
            done = self.native_step(group)
        if done is not True:
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
        return choice.kernels.sgd_step(
            group["params"],
            self.state,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
        )

    def initialise_state(self, group):
        for p in group["params"]:
            if p.grad is not None and not self.state[p]:
                self.state[p]["momentum_buffer"] = None


class _Adam(OneCallStep):
    def native_step(self, group):
        beta1, beta2 = group["betas"]
        return choice.kernels.adam_step(
            group["params"],
            self.state,
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["decoupled_weight_decay"],
            group["amsgrad"],
            group["maximize"],
        )

    def initialise_state(self, group):
        for p in group["params"]:
            if p.grad is not None and not self.state[p]:
                state = self.state[p]
                state["step"] = torch.tensor(0.0, dtype=torch.float32)
                names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(group["amsgrad"])
                state.update((name, torch.zeros_like(p, memory_format=torch.preserve_format)) for name in names)


class Adam(_Adam, torch.optim.Adam):
    """``torch.optim.Adam``: all parameters of a group in one call, bit-identical on every path in float32."""


class AdamW(_Adam, torch.optim.AdamW):
    """``torch.optim.AdamW``: all parameters of a group in one call, bit-identical on every path in float32."""


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """``torch.nn.utils.clip_grad_norm_``; the 2-norm runs in two native passes over all gradients."""
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    covered = float(norm_type) == 2.0 and not foreach and native.library is not None and not is_dynamo_compiling()
    if covered and choice.name != "stock" and max_norm >= 0:
        if error_if_nonfinite:
            total = choice.kernels.clip_grad_norm(parameters, -1.0)
            if total is not None and not total.isfinite():
                raise RuntimeError(f"clip_grad_norm_: expected gradients of finite norm, got {total.item()}")
        total = choice.kernels.clip_grad_norm(parameters, float(max_norm))
        if total is not None:
            return total
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
