"""The native library with the emulated launchers for kernels: the operators and optimisers composed of them as
csrc/launch composes them of the CPU's."""

import contextlib

import torch

from pytorch_ext import native
from pytorch_ext.backends import choice

from . import checks, ops
from .arguments import REDUCTIONS, SAVES_INPUT


class Kernels:
    """Operators of torch.ops.pytorch_ext for float32 tensors, by their names, each on a new machine."""

    def __init__(self, new_machine):
        self.new_machine = new_machine

    def linear_forward(self, x, weight, bias, activation):
        rows = x.reshape(-1, x.shape[-1])
        y, z = ops.product(self.new_machine(), rows, weight.T, bias, activation, activation in SAVES_INPUT)
        shape = (*x.shape[:-1], weight.shape[0])
        return y.view(shape), None if z is None else z.view(shape)

    def linear_backward(self, grad, x, weight, saved, activation, mask):
        machine, (n, k) = self.new_machine(), weight.shape
        grad, rows = grad.reshape(-1, n), x.reshape(-1, k)
        dz, dbias = grad, None
        if saved is not None or mask[2]:
            saved = None if saved is None else saved.reshape(-1, n)
            dz, dbias = ops.linear_gradient(machine, grad, saved, activation, mask[2])
        dx = ops.product(machine, dz, weight)[0].view(x.shape) if mask[0] else None
        return dx, ops.product(machine, dz.T, rows)[0] if mask[1] else None, dbias

    def activation_forward(self, x, kind):
        return ops.activation(self.new_machine(), kind, x.contiguous())

    def activation_backward(self, grad, saved, kind):
        return ops.activation_gradient(self.new_machine(), kind, grad.contiguous(), saved.contiguous())

    def softmax_forward(self, x, dim, logarithm):
        return ops.softmax(self.new_machine(), x.contiguous(), dim, logarithm)

    def softmax_backward(self, grad, y, dim, logarithm):
        return ops.softmax_gradient(self.new_machine(), grad.contiguous(), y.contiguous(), dim, logarithm)

    def _elementwise_loss(self, x, target, weight, pos_weight, loss, reduction, mask, grad=None, in_advance=None):
        if x.shape != target.shape or weight is not None or pos_weight is not None:
            raise NotImplementedError("an elementwise loss of operands that broadcast")
        arrays = (t.contiguous() for t in (x, target))
        options = {"grad": grad, "value": grad is None, "in_advance": in_advance}
        found = ops.elementwise_loss(self.new_machine(), loss, REDUCTIONS[reduction], *arrays, **options)
        wanted = (grad is None, *mask)
        return [t if want else None for t, want in zip(found, wanted, strict=True)]

    def elementwise_loss_forward(self, x, target, weight, pos_weight, loss, reduction, mask):
        value, *gradients = self._elementwise_loss(x, target, weight, pos_weight, loss, reduction, mask)
        return value if reduction == 0 else value.view(()), *gradients

    def elementwise_loss_backward(self, grad, x, target, weight, pos_weight, loss, reduction, mask):
        return tuple(self._elementwise_loss(x, target, weight, pos_weight, loss, reduction, mask, grad)[1:])

    def elementwise_loss_backward_into(self, grad, dinput, dtarget, x, *operands):
        left = [torch.zeros_like(x) if t is None else t for t in (dinput, dtarget)]
        found = self._elementwise_loss(x, *operands, [True, True], grad, left)[1:]
        for into, gradient in zip((dinput, dtarget), found, strict=True):
            if into is not None:
                into.copy_(gradient)

    def _cross_entropy(self, x, target, weight, reduction, ignore_index, smoothing, grad=None):
        args = (x.contiguous(), target.contiguous(), weight, REDUCTIONS[reduction], ignore_index, smoothing)
        return ops.cross_entropy(self.new_machine(), *args, grad=grad, value=grad is None)

    def cross_entropy_forward(self, x, target, weight, reduction, ignore_index, smoothing, with_gradient):
        loss, dinput, _ = self._cross_entropy(x, target, weight, reduction, ignore_index, smoothing)
        return loss if reduction == 0 else loss.view(()), dinput if with_gradient else None

    def cross_entropy_backward(self, grad, x, target, weight, reduction, ignore_index, smoothing, mask):
        gradients = self._cross_entropy(x, target, weight, reduction, ignore_index, smoothing, grad)[1:]
        return tuple(t if want else None for t, want in zip(gradients, mask, strict=True))

    def cross_entropy_backward_into(self, grad, dinput, x, target, weight, reduction, ignore_index, smoothing):
        args = (x.contiguous(), target.contiguous(), weight, REDUCTIONS[reduction], ignore_index, smoothing)
        machine = self.new_machine()
        dinput.copy_(ops.cross_entropy(machine, *args, grad=grad, value=False, in_advance=dinput.contiguous())[1])


class Namespace:
    """The native library's namespace with optimisers that run on the machines."""

    def __init__(self, new_machine):
        self.new_machine = new_machine

    def __getattr__(self, name):
        return getattr(native.library, name)

    def _update(self, tensors, updated):
        for old, new in zip(tensors, updated, strict=True):
            old.detach().copy_(new)

    def sgd_step(self, group, states):
        params = [p for p in group["params"] if p.grad is not None]
        rule = checks.sgd_rule(*(group[k] for k in ("lr", "momentum", "dampening", "weight_decay")))
        rule |= {"nesterov": group["nesterov"], "maximize": group["maximize"]}
        first = not any("momentum_buffer" in states[p] for p in params)
        buffers = None
        if group["momentum"]:
            buffers = [states[p].setdefault("momentum_buffer", torch.empty_like(p.detach())) for p in params]
        new, new_buffers = ops.sgd_step(self.new_machine(), rule, params, [p.grad for p in params], buffers, first)
        self._update([*params, *(buffers or [])], [*new, *new_buffers])
        return True

    def adam_step(self, group, states):
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not states[p]:
                states[p].update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            states[p]["step"] += 1
        rule = checks.adam_rule(group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        rule |= {"decoupled": group["decoupled_weight_decay"], "maximize": group["maximize"]}
        factors = checks.adam_factors(group["lr"], *group["betas"], states[params[0]]["step"])
        state = [[states[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq")]
        found = ops.adam_step(self.new_machine(), rule, *factors, params, [p.grad for p in params], *state)
        for old, new in zip((params, *state), found, strict=True):
            self._update(old, new)
        return True

    def clip_grad_norm(self, params, max_norm, error_if_nonfinite):
        grads = [p.grad for p in params if p.grad is not None]
        norm, clipped = ops.clip_gradients(self.new_machine(), [g.flatten() for g in grads], max_norm)
        self._update(grads, [c.view(g.shape) for c, g in zip(clipped, grads, strict=True)])
        return norm.view(())


@contextlib.contextmanager
def emulated(new_machine):
    """Inside the `with` block operators on CPU tensors and optimisers run on the machines that new_machine() makes."""
    before, kernels = choice.kernels, Kernels(new_machine)
    library = torch.library.Library("pytorch_ext", "IMPL")
    try:
        for name in (
            n for n in dir(kernels) if n.endswith(("_forward", "_backward", "_backward_into")) and n[0] != "_"
        ):
            library.impl(name, getattr(kernels, name), "CPU", allow_override=True)
        choice.kernels = Namespace(new_machine)
        yield
    finally:
        choice.kernels = before
        library._destroy()
