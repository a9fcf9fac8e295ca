"""The optimisers on the Triton path: options, gradients and state are read before the first element changes.

A function answers None, having changed no tensor, for what the kernels do not cover; csrc/launch/optimizers.cpp is its
twin. float64 is not covered.
"""

import math

import torch

from .triton_coverage import in_transform, is_ordinary
from .triton_path import kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def matches(t, like):
    """An ordinary dense tensor with the sizes, the dtype and the device of ``like``."""
    same = is_ordinary(t) and (t.device, t.dtype, t.shape) == (like.device, like.dtype, like.shape)
    return same and not t.is_inference()


def lies_like(t, like):
    """Whether element i in memory of one is element i in memory of the other, without gaps."""
    return t.stride() == like.stride() == torch.empty_like(like).stride()


def are_disjoint(tensors):
    """Whether no two of these dense tensors share memory."""
    pieces = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    return all(a[1] <= b[0] for a, b in zip(pieces, pieces[1:], strict=False))


def numbers_of(group, *names):
    """The options of these names, or None where one asks for another implementation: a tensor, say."""
    if in_transform() or any(group.get(name) for name in ("foreach", "fused", "capturable", "differentiable")):
        return None
    values = [group[name] for name in names]
    flat = [x for v in values for x in (v if isinstance(v, tuple) else (v,))]
    return None if any(isinstance(x, torch.Tensor) for x in flat) else dict(zip(names, values, strict=True))


def gather(group):
    """(parameter, gradient) of those that have one; None where one is not covered."""
    found = []
    for p in group["params"]:
        g = p.grad
        if g is None:
            continue
        covered = p.dtype in DTYPES and matches(p, p) and matches(g, p) and lies_like(p, p)
        if not covered or not kernels.launch.can_run_on(p.device):
            return None
        found.append((p, g if lies_like(g, p) else torch.empty_like(p).copy_(g)))
    return found if are_disjoint([p for p, _ in found]) else None


def is_state_of(t, p):
    return matches(t, p) and lies_like(t, p)


def written(*tensors):
    torch.autograd.graph.increment_version([t for t in tensors if t is not None])


@torch.no_grad()
def sgd_step(group, states):
    options = numbers_of(group, "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    found = gather(group) if options else None
    if found is None:
        return None
    buffers = [None] * len(found)
    if options["momentum"]:
        buffers = [states[p].get("momentum_buffer") for p, _ in found]
        if not all(b is None or is_state_of(b, p) for b, (p, _) in zip(buffers, found, strict=True)):
            return None
    for (p, g), buffer in zip(found, buffers, strict=True):
        first = buffer is None
        if first and options["momentum"]:
            states[p]["momentum_buffer"] = buffer = torch.empty_like(p)
        kernels.optimizers.sgd_step(p.detach(), g, buffer, first, **options)
        written(p, buffer)
    return True


def initialise_adam(p, state, amsgrad):
    """What torch.optim.Adam puts into an empty state."""
    state["step"] = torch.zeros((), dtype=torch.promote_types(torch.float32, torch.get_default_dtype()))
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + amsgrad]:
        state[name] = torch.zeros_like(p)


def is_step_count(t):
    """Whether it is a whole number on the CPU."""
    number = is_ordinary(t) and t.device.type == "cpu" and t.numel() == 1 and not t.is_inference()
    if not number or t.dtype not in (torch.float32, torch.float64):
        return False
    return 0 <= t.item() < 2**53 and t.item() == math.floor(t.item())


@torch.no_grad()
def adam_step(group, states):
    options = numbers_of(group, "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
    found = gather(group) if options else None
    if found is None or not isinstance(options["betas"], tuple):
        return None
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + options["amsgrad"]]
    for p, _ in found:
        if not states[p]:
            initialise_adam(p, states[p], options["amsgrad"])
        moments = [states[p].get(name) for name in names]
        if not is_step_count(states[p].get("step")) or not all(m is not None and is_state_of(m, p) for m in moments):
            return None
    options["decoupled"] = bool(group.get("decoupled_weight_decay"))
    for p, g in found:
        state = states[p]
        state["step"] += 1
        moments = [state.get(name) for name in names] + [None] * (3 - len(names))
        kernels.optimizers.adam_step(p.detach(), g, *moments, int(state["step"]), **options)
        written(p, *moments)
    return True


@torch.no_grad()
def clip_grad_norm(tensors, max_norm, error_if_nonfinite):
    if in_transform() or not all(is_ordinary(t) for t in tensors):
        return None
    grads = [t.grad for t in tensors if t.grad is not None]
    for g in grads:
        covered = g.dtype in DTYPES and matches(g, g) and g.is_contiguous() and kernels.launch.can_run_on(g.device)
        if not covered or (g.dtype, g.device) != (grads[0].dtype, grads[0].device):
            return None
    if not grads or not are_disjoint(grads):
        return None
    norm = kernels.optimizers.gradient_norm(grads)
    if error_if_nonfinite and not math.isfinite(norm):  # waits for the device, as stock does
        raise RuntimeError(f"clip_grad_norm_: expected gradients of finite norm, got {norm.item()}")
    kernels.optimizers.clip_gradients(grads, max_norm, norm)
    written(*grads)
    return norm.to(grads[0].dtype)
