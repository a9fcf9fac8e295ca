"""verify(model, batch): every kernel a model uses, its output and its gradients, against float64."""

import copy
from dataclasses import dataclass

import torch

from . import functional
from .accuracy import PRODUCT_TERMS, SUM_TERMS, allowed_error
from .backends import backend
from .conversion import convert
from .ops import losses
from .ops.activation import activation
from .ops.checks import expect
from .recording import kept_random_state, recorded, returned
from .report import Report

# The public function behind a kernel's call.
FUNCTIONS = {
    "linear": lambda x, w, b, kind: functional.linear(x, w, b, activation=kind),
    "matmul": functional.matmul,
    "scaled_dot_product_attention": lambda q, k, v, mask, is_causal, scale: functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=is_causal, scale=scale
    ),
    "activation": lambda x, kind: activation(kind, kind, x),
    **losses.as_kernels_are_called(functional),
}
FUNCTIONS["mse_loss_broadcast"] = FUNCTIONS["mse_loss"]
PRODUCTS = {"linear": ("input", "weight", "bias"), "matmul": ("input", "other")}
NAMES = {
    **PRODUCTS,
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "linear_cross_entropy": ("input", "linear_weight", "target", "linear_bias"),
}


@dataclass
class Row:
    """One result: our error where it comes closest to what the rule allows there, and stock's largest error.

    The last rows are those of the whole model, for which no bound can be told: ``within`` is None.
    """

    layer: str
    op: str
    result: str
    dtype: str
    error: float
    stock_error: float
    allowed: float = None
    within: bool = None


class VerificationReport(Report):
    """What :func:`verify` found; true where every result keeps the rule. ``first`` is the first beyond it, or None."""

    title = "pytorch_ext.verify: errors against float64"
    row = Row

    @property
    def first(self):
        return next((row for row in self.rows if row.within is False), None)

    def __bool__(self):
        return self.first is None

    def summary(self):
        row, count = self.first, sum(row.within is not None for row in self.rows)
        if not count:
            return "no kernel of this package ran"
        if row is None:
            return f"all {count} results of kernels are within the accuracy rule"
        where = f"{row.layer or 'the model'}, {row.op}, {row.result}"
        return f"beyond the accuracy rule: {where}: error {row.error:.3g}, allowed {row.allowed:.3g}"


def verify(model, batch):
    """Compare every kernel that ``model(batch)`` runs with float64, beside stock's own error, output and gradients.

    batch: a tensor, a tuple of arguments or a mapping of named ones. Works on a copy, which is converted first unless
    the model is this package's already; Dropout modules do not drop there. Returns a :class:`VerificationReport`, with
    rows in the order of the calls. Raises TypeError for anything but a module, ValueError where two runs differ.
    """
    expect(isinstance(model, torch.nn.Module), "verify", "a torch.nn.Module", type(model).__name__, TypeError)
    ours = without_dropout(copy.deepcopy(model))
    convert(ours)
    expect(
        not any(p.is_meta for p in ours.parameters()), "verify", "a model with values", "parameters on meta", ValueError
    )
    with kept_random_state(ours):
        return VerificationReport(verified(ours, batch))


def verified(ours, batch):
    """The rows of a model that is this package's."""
    seeds = {}
    if any(map(torch.nn.parameter.is_lazy, ours.parameters())):
        run(ours, batch, {}, seed=0)  # each copy would have parameters of its own
    first = copy.deepcopy(ours)
    with recorded(first) as recorder:
        results = run(first, batch, seeds, seed=0)
    again = run(copy.deepcopy(ours), batch, seeds, seed=1)
    same = all(torch.allclose(value, again[name], equal_nan=True) for name, value in results.items())
    random = "results that differ between two runs (in eval() models usually have none)"
    expect(same, "verify", "a model without random numbers", random, ValueError)
    rows = [row for call in recorder.calls if call.result is not None for row in rows_of(call)]
    return rows + rows_of_model(ours, batch, seeds, results)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def run(model, batch, seeds, seed, change=lambda t: t):
    """Output and gradients by name; ``seeds`` keeps the output gradients, which every run shares."""
    torch.manual_seed(seed)
    outputs = [t for t in returned(model, batch, change) if is_float(t)]
    results = {f"output {i}" if len(outputs) > 1 else "output": t.detach() for i, t in enumerate(outputs)}
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sources = [t for t in outputs if t.requires_grad]
    if sources and wanted:
        grads = [seeds.setdefault(i, random_gradient(t)).to(t.dtype) for i, t in enumerate(sources)]
        found = torch.autograd.grad(sources, list(wanted.values()), grads, allow_unused=True)
        results |= {f"d {name}": g for name, g in zip(wanted, found, strict=True) if g is not None}
    return results


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def random_gradient(output):
    """A gradient that every dtype holds exactly."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(output.shape, generator=generator).bfloat16().double().to(output.device)


def rows_of_model(model, batch, seeds, results):
    """The errors of the whole model, in which those of all layers meet; none where it cannot run in float64."""

    def double(t):
        return t.double() if is_float(t) else t

    with backend("stock"):
        stock = run(copy.deepcopy(model), batch, seeds, seed=0)
        try:
            exact = run(copy.deepcopy(model).double(), batch, seeds, seed=0, change=double)
        except RuntimeError:  # a forward that names another dtype, ``x.float()`` say
            return []
    pairs = [(name, value, stock[name], exact[name].double()) for name, value in results.items()]
    return [
        Row("", "whole model", name, short(ours.dtype), worst(ours, reference), worst(theirs, reference))
        for name, ours, theirs, reference in pairs
        if ours.numel()
    ]


# ---- one call of a kernel -------------------------------------------------------------------------------------------


def rows_of(call):
    """The rows of one call: its output and the gradient of every argument that had one."""
    if call.op not in FUNCTIONS:  # dropout: no arithmetic but a product with a constant
        return []
    wanted = [i for i, a in enumerate(call.arguments) if is_float(a) and a.requires_grad]
    dtype = call.result.dtype
    ours = replay(call, wanted)
    with backend("stock"):
        stock = replay(call, wanted)
        exact = replay(call, wanted, torch.float64)
    magnitudes, factor = magnitudes_of(call, wanted)
    names = ["output", *(f"d {name_of(call.op, i)}" for i in wanted)]
    rows = []
    for name, mine, theirs, reference, magnitude in zip(names, ours, stock, exact, magnitudes, strict=True):
        if mine is None or reference is None or not mine.numel():
            continue
        finite = reference.isfinite()
        allowed = allowed_error(reference, theirs, dtype, magnitude, factor)
        error = (mine.double() - reference).abs()
        within = bool((error <= allowed)[finite].all()) and torch.equal(mine.isfinite(), theirs.isfinite())
        at = int(torch.where(finite, error / allowed, -torch.inf).argmax())
        op = f"linear, {call.arguments[3]}" if call.op == "linear" and call.arguments[3] != "none" else call.op
        rows.append(
            Row(
                call.layer,
                call.arguments[1] if call.op == "activation" else op,
                name,
                short(dtype),
                float(error.flatten()[at]),
                worst(theirs, reference),
                float(allowed.expand_as(error).flatten()[at]),
                within,
            )
        )
    return rows


def replay(call, wanted, dtype=None):
    """[output, gradients of the wanted arguments] of the call's function on copies, in ``dtype`` where one is given."""

    def fresh(i, value):
        if not isinstance(value, torch.Tensor):
            return value if not (isinstance(value, torch.dtype) and dtype) else dtype
        value = value.detach()
        return (value.to(dtype) if dtype and is_float(value) else value).requires_grad_(i in wanted)

    copies = [fresh(i, value) for i, value in enumerate(call.arguments)]
    device, under_autocast = copies[0].device.type, call.autocast is not None and dtype is None
    with torch.enable_grad(), torch.autocast(device, call.autocast, enabled=under_autocast, cache_enabled=False):
        output = FUNCTIONS[call.op](*copies)
    if not wanted:
        return [output.detach()]
    grad = random_gradient(output).to(output.dtype)
    with torch.autocast(device, enabled=False):  # as it is on the way back
        found = torch.autograd.grad(output, [copies[i] for i in wanted], grad, allow_unused=True)
    return [output.detach(), *found]


def magnitudes_of(call, wanted):
    """(sums of |terms| of the output and of each wanted gradient, the rule's factor)."""
    if call.op == "linear_cross_entropy":
        return magnitudes_of_last_layer(call, wanted), PRODUCT_TERMS
    if call.op not in PRODUCTS:
        return [None] * (1 + len(wanted)), SUM_TERMS
    product = [abs(a.detach().double()) if is_float(a) else a for a in call.arguments[: len(PRODUCTS[call.op])]]
    copies = [a.requires_grad_() if is_float(a) else a for a in product]
    with torch.enable_grad(), backend("stock"):
        output = torch.matmul(*copies) if call.op == "matmul" else functional.linear(*copies)
        grad = random_gradient(output).abs()
        found = torch.autograd.grad(output, [copies[i] for i in wanted], grad) if wanted else []
    # Twice: an activation's slope, and what the product's own rounding adds to it.
    return [2 * t.detach() for t in (output, *found)], PRODUCT_TERMS


def magnitudes_of_last_layer(call, wanted):
    """Those of linear_cross_entropy: a logit's error is one of -log p, and of p in proportion."""
    x, W, target, bias, *settings = (a.detach().double() if is_float(a) else a for a in call.arguments)
    dims, sizes = (x.reshape(-1, x.shape[-1]), W.flatten(0, -2)), (*x.shape[:-1], *W.shape[:-1])
    bias = None if bias is None else bias.flatten()
    with torch.enable_grad(), backend("stock"):
        logits = functional.linear(*dims, bias).reshape(sizes).requires_grad_()
        loss = FUNCTIONS["cross_entropy"](logits, target, *settings[:4])
        (dz,) = torch.autograd.grad(loss, logits, random_gradient(loss))
    largest = functional.linear(*(t.abs() for t in dims), None if bias is None else bias.abs()).max()
    dz = dz.abs().reshape(-1, dims[1].shape[0])
    of = {0: dz @ dims[1].abs(), 1: dz.t() @ dims[0].abs(), 3: dz.sum(0)}
    terms = loss.detach().abs() + (loss.numel() and largest * (target.numel() if settings[1] == 2 else 1))
    return [terms, *(of[i].reshape(call.arguments[i].shape) * (1 + largest) for i in wanted)]


def name_of(op, i):
    return NAMES.get(op, ("input", "target", "weight", "pos_weight"))[i]


def worst(result, reference):
    """The largest error, infinite where only one of the two is finite."""
    error = (result.double() - reference).abs()
    same = (result.double() == reference) | (result.isnan() & reference.isnan())
    return float(torch.where(same, 0.0, error.nan_to_num(nan=torch.inf)).max())


def short(dtype):
    return str(dtype).removeprefix("torch.")
