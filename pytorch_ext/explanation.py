"""explain(model, batch): which path every operation takes, and why."""

import copy
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import native
from .backends import choice
from .flops import NAMESPACES
from .ops.checks import expect, is_autocast
from .ops.paths import KERNEL_DTYPES, products_are_ieee
from .recording import kept_random_state, now, recorded, returned
from .report import Report
from .reproducibility import MOVES
from .triton_coverage import in_transform
from .triton_path import is_interpreted

PRODUCTS = ("linear", "matmul")
# Operators of torch whose work a kernel of this package does where it is asked.
OURS_TOO = set("addmm mm bmm baddbmm _softmax _log_softmax relu sigmoid tanh gelu silu mse_loss native_dropout".split())
OURS_TOO |= {"nll_loss_forward", "nll_loss2d_forward", "binary_cross_entropy", "binary_cross_entropy_with_logits"}


@dataclass
class Row:
    """One operation: where it ran and why there, bytes read and written, microseconds of this one run."""

    layer: str
    op: str
    path: str
    why: str
    dtype: str
    bytes: int
    microseconds: float


class Explanation(Report):
    """What :func:`explain` saw, in the order of the run."""

    title = "pytorch_ext.explain"
    row = Row

    def paths(self):
        """{path: number of operations that took it}."""
        taken = [row.path for row in self.rows]
        return {path: taken.count(path) for path in dict.fromkeys(taken)}

    def summary(self):
        times = {path: sum(row.microseconds for row in self.rows if row.path == path) for path in self.paths()}
        return ", ".join(f"{path}: {count} operations, {times[path]:.0f} us" for path, count in self.paths().items())


def explain(model, batch, *, backward=True):
    """Run ``model(batch)`` once, and its backward pass where something requires a gradient, and tell every operation.

    batch: a tensor, a tuple of arguments or a mapping of named ones. Works on a copy. Operations that only make or move
    tensors are left out. Times are of single calls with their overhead, after one run to warm up. Returns an
    :class:`Explanation`; raises TypeError for anything but a module.
    """
    expect(isinstance(model, torch.nn.Module), "explain", "a torch.nn.Module", type(model).__name__, TypeError)
    scripted = isinstance(model, torch.jit.ScriptModule)
    expect(not scripted, "explain", "a module of Python code", type(model).__name__, TypeError)
    model = copy.deepcopy(model)
    for _ in range(2):  # the first warms up: under a dispatch mode torch imports its compiler, which takes seconds
        with kept_random_state(model), recorded(model) as recorder, Operators(recorder) as operators:
            run(model, batch, backward)
        model.zero_grad()
    rows = [(call.start, row_of(call)) for call in recorder.calls] + operators.rows
    return Explanation(row for _, row in sorted(rows, key=lambda pair: pair[0]))


def run(model, batch, backward):
    outputs = [t for t in returned(model, batch) if t.requires_grad]
    if backward and outputs:
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])


def row_of(call):
    """The row of a kernel's call."""
    tensors = [a for a in (*call.arguments, call.result) if isinstance(a, torch.Tensor)]
    if call.result is None:
        return made_row(call.layer, op_name(call), "stock", refusal(call), tensors, 0.0)
    path, why = taken(call.op, tensors, call.result)
    return made_row(call.layer, op_name(call), path, why, tensors, call.seconds)


def made_row(layer, op, path, why, tensors, seconds):
    dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
    return Row(layer, op, path, why, dtype, sum(t.nbytes for t in tensors), 1e6 * seconds)


class Operators(TorchDispatchMode):
    """Makes a row of every operator outside a kernel's call, unless it only makes or moves tensors."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder, self.rows = recorder, []
        self.differentiated = set()  # the calls of which the backward pass has come

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        start = now(tree_leaves(args))
        result = function(*args, **(kwargs or {}))
        namespace, _, name = function._schema.name.partition("::")
        base = name.removesuffix("_").removesuffix("_copy")
        tensors = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
        if tensors and not self.recorder.depth and base not in MOVES and name not in MOVES:
            seconds = now(tensors) - start
            path, why, op = "stock", self.why(base), f"{namespace}.{name}"
            if namespace in NAMESPACES:
                path, why = taken(name, tensors, args[0] if name.endswith("_backward") else result)
                op = name
            called_by = self.layer_of_forward_pass(base, tensors[0])
            layer = self.recorder.layers.of(tensors) or called_by
            self.rows.append((start, made_row(layer, op, path, why, tensors, seconds)))
        return result

    def layer_of_forward_pass(self, name, grad):
        """The layer whose call this differentiates, which may not need the layer's parameters: backward passes come in
        the reverse order of the calls."""
        if not name.endswith("_backward"):
            return ""
        for i, call in reversed(list(enumerate(self.recorder.calls))):
            is_its = isinstance(call.result, torch.Tensor) and call.result.shape == grad.shape
            if is_its and name == f"{call.op}_backward" and i not in self.differentiated:
                self.differentiated.add(i)
                return call.layer
        return ""

    def why(self, name):
        """Why an operator of torch runs."""
        if name.removesuffix("_backward") not in OURS_TOO:
            return "this package has no such kernel"
        calls = self.recorder.calls
        if calls and calls[-1].result is None:
            return f"in place of {op_name(calls[-1])}"
        return "called past this package"


def op_name(call):
    """The name of the op, with the activation that is in it."""
    if call.op == "activation":
        return call.arguments[1]
    kind = call.arguments[3] if call.op == "linear" else "none"
    return call.op if kind == "none" else f"{call.op}, {kind}"


def path_of(tensor):
    """The path that a kernel's call takes for this tensor."""
    device = tensor.device.type
    if choice.name == "triton" or native.library is None or (device == "cuda" and not native.record.get("cuda")):
        return "triton, interpreted" if is_interpreted() else f"triton-{device}"
    return f"native-{device}"


def taken(op, tensors, output):
    """(path, what holds for it) of a kernel's call; ``output``: its result, or the gradient of that."""
    if op.removesuffix("_backward") in PRODUCTS and path_of(tensors[0]).startswith("native"):
        low = output if isinstance(output, torch.Tensor) else output[0]
        if native.library.is_stock_product(low, low.numel() * tensors[1 if op.endswith("_backward") else 0].shape[-1]):
            dtype = str(low.dtype).removeprefix("torch.")
            return "stock (table)", f"{dtype} products of this size are faster there, by measurement"
    return path_of(tensors[0]), contract(tensors[0])


def contract(tensor):
    """What holds for a call that a kernel has taken."""
    if tensor.dtype == torch.float32 and not is_autocast(tensor):
        return "float32: bits as on every device"
    return "a kernel, outside the contract of float32"


def refusal(call):
    """Why the kernels have not taken a call."""
    tensors = [a for a in call.arguments if isinstance(a, torch.Tensor)]
    if choice.name == "stock":
        return f"the backend is stock{f': {native.reason}' if native.reason else ''}"
    if not tensors:
        return "the arguments are no tensors"
    first = tensors[0]
    special = next((t for t in tensors if type(t) not in (torch.Tensor, torch.nn.Parameter)), None)
    if special is not None:
        return f"a tensor subclass: {type(special).__name__}"
    if in_transform():
        return "inside a functional transform or a function mode"
    if first.dtype not in KERNEL_DTYPES:
        return f"no kernel for {str(first.dtype).removeprefix('torch.')}"
    if first.device.type not in ("cpu", "cuda") or (first.is_cuda and not native.library.has_kernels(first)):
        return f"no kernel for the device {first.device}"
    if call.op in PRODUCTS and not products_are_ieee(first):
        return "torch's flags ask for TF32 or bfloat16 products"
    floats = {t.dtype for t in tensors if t.is_floating_point()}
    if len(floats) > 1:
        return "tensors of several dtypes"
    return "arguments that the kernels do not cover"
