"""TrainStep: forward, loss, backward and update of a whole model in one native call."""

import itertools
import threading

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset, default_collate

from . import native, nn
from .chain import NotAChain, chain_of, places_of
from .ops.checks import expect
from .ops.losses import REDUCTIONS
from .ops.paths import choice
from .optim import SGD, Adam, AdamW, clip_grad_norm_

__all__ = ["TrainStep"]

RULES = {torch.optim.SGD: "sgd", SGD: "sgd"} | dict.fromkeys((torch.optim.Adam, torch.optim.AdamW, Adam, AdamW), "adam")
BATCHES_PER_CALL = 64  # of run(): between them the progress bar moves, and Ctrl-C is heard


class TrainStep:
    """One training step as one call: ``loss = step(input, target)``.

    It does what the loop below does, with the same bits as with this package's layers and optimisers::

        loss = loss_function(model(input), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)   # where max_norm is given
        optimizer.step()
        optimizer.zero_grad()

    The parameters, the optimiser's state and the options are those of the objects given, at every step: state_dicts,
    checkpoints, schedulers, ``model.eval()`` and a return to the loop above work at any time. Gradients are kept
    inside: ``.grad`` is neither read nor written. The optimiser's step hooks run.

    model
        A chain of Flatten, Linear, ReLU, Sigmoid, Tanh, GELU, SiLU, Dropout, Softmax, LogSoftmax and Identity, of
        ``torch.nn`` or ``pytorch_ext.nn``: a Sequential, or any forward that torch.fx traces to such a chain.
    loss_function
        A module: MSELoss, CrossEntropyLoss, NLLLoss, BCELoss or BCEWithLogitsLoss, with reduction mean or sum.
    optimizer
        SGD, Adam or AdamW of ``torch.optim`` or ``pytorch_ext.optim``.
    max_norm
        The gradients of each update are clipped to this 2-norm, as ``torch.nn.utils.clip_grad_norm_`` does.
    accumulate
        So many calls add up their gradients before each update.
    fallback
        Run the loop itself where the native step does not apply, instead of raising ValueError with the reason.
    """

    def __init__(self, model, loss_function, optimizer, *, max_norm=None, accumulate=1, fallback=False):
        got = type(model).__name__, type(optimizer).__name__
        expect(isinstance(model, torch.nn.Module), "TrainStep", "model to be a Module", got[0], TypeError)
        expect(isinstance(optimizer, Optimizer), "TrainStep", "optimizer to be an Optimizer", got[1], TypeError)
        whole = type(accumulate) is int and accumulate >= 1
        expect(whole, "TrainStep", "accumulate to be a positive integer", repr(accumulate), ValueError)
        is_norm = max_norm is None or isinstance(max_norm, (int, float))
        expect(is_norm, "TrainStep", "max_norm to be a number", repr(max_norm), TypeError)
        self.model, self.loss_function, self.optimizer = model, loss_function, optimizer
        self.max_norm, self.accumulate = max_norm, accumulate
        self.reason = None  # why the loop runs instead of the native step
        self._turn = threading.RLock()  # of steps that are several calls
        try:
            self._native = native_step(model, loss_function, optimizer, max_norm, accumulate)
        except NotAChain as error:
            if not fallback:
                raise ValueError(f"TrainStep: expected {error}") from error
            self.reason = str(error)
            self._native = Loop(model, loss_function, optimizer, max_norm, accumulate)

    def __call__(self, input, target):
        """The loss of this batch, a 0-dim tensor without history; the parameters are updated."""
        with self._turn:
            if self.reason is not None:
                return self._native(input, target)
            # By two calls, between which hooks and the profiler see the update. Where nobody looks, the native code
            # that takes this function's place needs one.
            updates = self._native.updates_next()
            loss = self._native.gradients(input, target)
            if updates:
                _hooked_update(self.optimizer, self._native)
            return loss

    @property
    def path(self):
        """How the last step ran: "loop", "native" on a CPU; on a device "one launch of N blocks", or "launches: " and
        why they are several."""
        if self.reason is not None:
            return "loop"
        if next(self.model.parameters()).device.type == "cpu":
            return "native"
        blocks = self._native.blocks()
        return f"one launch of {blocks} blocks" if blocks else f"launches: {self._native.reason()}"

    def run(self, loader, epochs=1, *, progress=False):
        """Train on all batches ``(input, target)`` of ``loader``, ``epochs`` times; the mean loss of each epoch.

        A DataLoader over a TensorDataset in memory is read natively, in the order it would have; any other iterable of
        batches is iterated. ``progress`` shows a bar.
        """
        from tqdm import tqdm

        means = []
        for epoch in range(epochs):
            total, count = 0.0, 0
            bar = tqdm(disable=not progress, desc=f"epoch {epoch + 1}/{epochs}", unit=" batches", total=length(loader))
            with bar:
                for losses in self._losses(loader):
                    if progress and count:  # of the batches before, so that a device goes on meanwhile
                        bar.set_postfix_str(f"loss {float(total) / count:.4f}", refresh=False)
                    total = total + losses.double().sum()
                    count += len(losses)
                    bar.update(len(losses))
                expect(count, "TrainStep", "a loader with batches", "none", ValueError)
                means.append(float(total) / count)
                bar.set_postfix_str(f"loss {means[-1]:.4f}")
        return means

    def _losses(self, loader):
        """The losses of an epoch, some batches at a time."""
        if self.reason is not None or not is_in_memory(loader) or self._native.is_observed():
            batches = iter(loader)
            while some := list(itertools.islice(batches, BATCHES_PER_CALL)):
                yield torch.stack([self(input, target) for input, target in some])
            return
        inputs, targets = loader.dataset.tensors
        indices = iter(loader)._sampler_iter  # made as a loop over the loader would make it: with the same draws
        while some := list(itertools.islice(indices, BATCHES_PER_CALL)):
            rows = torch.tensor(list(itertools.chain.from_iterable(some)))
            if inputs.is_cuda:
                rows = rows.pin_memory().to(inputs.device, non_blocking=True)
            yield self._native.run(inputs, targets, rows, [len(batch) for batch in some])


if native.library is not None:
    native.library.call_natively(TrainStep)


def length(loader):
    return len(loader) if hasattr(loader, "__len__") else None


def is_in_memory(loader):
    """Whether the loader's batches are rows of two tensors."""
    if type(loader) is not DataLoader or type(loader.dataset) is not TensorDataset or loader.num_workers:
        return False
    plain = loader.collate_fn is default_collate and loader.batch_sampler is not None and not loader.pin_memory
    return plain and len(loader.dataset.tensors) == 2


@Optimizer.profile_hook_step
def _hooked_update(optimizer, step):
    step.update()


class Loop:
    """The step as a loop over modules would write it, with the interface of the native one."""

    def __init__(self, model, loss_function, optimizer, max_norm, accumulate):
        self.model, self.loss_function, self.optimizer = model, loss_function, optimizer
        self.max_norm, self.accumulate, self.batches = max_norm, accumulate, 0

    def updates_next(self):
        return self.batches + 1 >= self.accumulate

    def gradients(self, input, target):
        loss = self.loss_function(self.model(input), target)
        loss.backward()
        self.batches += 1
        return loss.detach()

    def update(self):
        if self.batches < self.accumulate:
            return
        self.batches = 0
        if self.max_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self, input, target):
        loss = self.gradients(input, target)
        self.update()
        return loss


def native_step(model, loss_function, optimizer, max_norm, accumulate):
    """The native step; NotAChain where the model, the loss or the optimiser is none it knows."""
    if native.library is None:
        raise NotAChain(f"the native library, got none: {native.reason}")
    if choice.name != "native":
        raise NotAChain(f"the backend native, got {choice.name}")
    if type(optimizer) not in RULES:
        raise NotAChain(f"the optimiser SGD, Adam or AdamW, got {type(optimizer).__qualname__}")
    check_options(optimizer)
    layers = chain_of(model)
    check_parameters(layers)
    norm = None if max_norm is None else float(max_norm)
    loss = describe_loss(loss_function)
    return native.library.TrainStep(layers, places_of(model), loss, optimizer, RULES[type(optimizer)], norm, accumulate)


def check_options(optimizer):
    """Options that are numbers: what makes tensors of them is torch's own step."""
    for group in optimizer.param_groups:
        for name in ("capturable", "differentiable"):
            if group.get(name):
                raise NotAChain(f"an optimiser without {name}, got {name}={group[name]}")
        for name, value in group.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, torch.Tensor) for number in numbers):
                raise NotAChain(f"an optimiser whose options are numbers, got a tensor as {name}")


def check_parameters(layers):
    """Plain parameters of one dtype on one device with kernels, each in one layer."""
    linear = [layer[1:3] for layer in layers if layer[0] == "linear"]
    found = [(f"{name}.{key}", p) for module, name in linear for key, p in module._parameters.items() if p is not None]
    if not found:
        raise NotAChain("a model with a Linear layer, got none")
    (_, first), owners = found[0], {}
    for where, parameter in found:
        if type(parameter) is not torch.nn.Parameter or parameter.dtype not in (torch.float32, torch.float64):
            raise NotAChain(f"float32 or float64 parameters, got {where}, {parameter.dtype}")
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise NotAChain(f"parameters of one dtype on one device, got {where}: {parameter.dtype}")
        if not parameter.is_contiguous():
            raise NotAChain(f"contiguous parameters, got {where} of strides {parameter.stride()}")
        if id(parameter) in owners:
            raise NotAChain(f"parameters that belong to one layer, got {where}, which is {owners[id(parameter)]}")
        owners[id(parameter)] = where
    if not native.library.has_kernels(first):
        raise NotAChain(f"parameters on a device with kernels, got {first.device}")


def describe_loss(loss):
    """(op, reduction, weight, options of that op) of a loss module."""
    op = next(
        (name for name, kind in LOSSES.items() if type(loss) in (getattr(torch.nn, kind), getattr(nn, kind))), None
    )
    if op is None:
        raise NotAChain(f"a loss module, one of {', '.join(LOSSES.values())}, got {type(loss).__qualname__}")
    if loss.reduction not in ("mean", "sum"):
        raise NotAChain(f"a loss with reduction mean or sum, got {loss.reduction}")
    weight, reduction = getattr(loss, "weight", None), REDUCTIONS[loss.reduction]
    if op == "cross_entropy":
        return op, reduction, weight, loss.ignore_index, loss.label_smoothing
    if op == "nll_loss":
        return op, reduction, weight, loss.ignore_index
    return op, reduction, weight, getattr(loss, "pos_weight", None)


LOSSES = {
    "cross_entropy": "CrossEntropyLoss",
    "nll_loss": "NLLLoss",
    "mse_loss": "MSELoss",
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
}
