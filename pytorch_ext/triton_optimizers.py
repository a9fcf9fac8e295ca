"""The optimisers on the Triton path: options, gradients and state are read before the first element changes.

A function answers None, having changed no tensor, for what the kernels do not cover; csrc/launch/optimizers.cpp is its
twin. Parameters of one dtype on one device are one launch.
"""

import math

import torch

from .ops.paths import KERNEL_DTYPES
from .triton_coverage import in_transform, is_ordinary
from .triton_path import kernels


def covered(t):
    """Whether kernels reach it by its address: what is interpreted does not reach a device."""
    launch = kernels.launch
    return t.dtype in KERNEL_DTYPES and matches(t, t) and launch.can_run_on(t.device) and launch.reaches(t.device)


def in_launches(pairs, *keys):
    """The indices of (parameter, gradient) that one launch takes: of one dtype, device and each other key."""
    launches = {}
    for i, ((p, _), *others) in enumerate(zip(pairs, *keys, strict=True)):
        launches.setdefault((p.dtype, p.device, *others), []).append(i)
    return launches


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
        if not covered(p) or not matches(g, p) or not lies_like(p, p):
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
    for (*_, first), chosen in in_launches(found, [b is None for b in buffers]).items():
        params, grads = zip(*(found[i] for i in chosen), strict=True)
        own = None
        if options["momentum"]:
            own = [
                torch.empty_like(p) if b is None else b
                for p, b in zip(params, (buffers[i] for i in chosen), strict=True)
            ]
            for p, b in zip(params, own, strict=True):
                states[p]["momentum_buffer"] = b
        kernels.optimizers.sgd_step([p.detach() for p in params], grads, own, first, **options)
        written(*params, *(own or ()))
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
    for p, _ in found:
        states[p]["step"] += 1
    for (*_, step), chosen in in_launches(found, [int(states[p]["step"]) for p, _ in found]).items():
        params, grads = zip(*(found[i] for i in chosen), strict=True)
        moments = [[states[p][name] for p in params] for name in names]
        own = moments + [None] * (3 - len(names))
        kernels.optimizers.adam_step([p.detach() for p in params], grads, *own, step, **options)
        written(*params, *(t for kind in moments for t in kind))
    return True


@torch.no_grad()
def clip_grad_norm(tensors, max_norm, error_if_nonfinite):
    if in_transform() or not all(is_ordinary(t) for t in tensors):
        return None
    grads = [t.grad for t in tensors if t.grad is not None]
    for g in grads:
        if not covered(g) or not g.is_contiguous() or (g.dtype, g.device) != (grads[0].dtype, grads[0].device):
            return None
    if not grads or not are_disjoint(grads):
        return None
    norm = kernels.optimizers.gradient_norm(grads)
    if error_if_nonfinite and not math.isfinite(norm):  # waits for the device, as stock does
        raise RuntimeError(f"clip_grad_norm_: expected gradients of finite norm, got {norm.item()}")
    kernels.optimizers.clip_gradients(grads, max_norm, norm)
    written(*grads)
    return norm.to(grads[0].dtype)
