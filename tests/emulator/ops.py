"""The launchers as functions of torch tensors, on any machine; results are tensors in the machine's memory."""

import math

import torch

from .arguments import ACTIVATIONS, FUNCTIONS, LOSSES, REDUCTIONS


def _addresses(*arrays):
    return [array.address if array else None for array in arrays]


def _tensors(*arrays):
    return [array.tensor if array else None for array in arrays]


def batch_offsets(machine, t):
    """The address of where the matrices of `t` begin, for every index of its leading dimensions."""
    sizes, strides = t.shape[:-2], t.stride()[:-2]
    p = machine.structures.BatchOffsets(dims=len(sizes), count=sizes.numel())
    p.size[: len(sizes)], p.stride[: len(sizes)] = sizes, strides
    offsets = machine.memory.empty(p.count, dtype=torch.int64)
    p.offsets = offsets.address
    machine.call("batch_offsets", p)
    return offsets


def product(machine, a, b, bias=None, activation="none", preactivation=False, onto=None):
    """(activation(a b + bias), a b + bias or None), a (..., M, K) and b (..., K, N) with equal leading dimensions.

    ``onto``: the sums of earlier chunks of K.
    """
    batch, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    y = machine.memory.empty(*batch, m, n)
    if onto is not None:
        y.tensor.copy_(onto)
    z = machine.memory.empty(*batch, m, n) if preactivation else None
    p = machine.structures.Product(M=m, N=n, K=k, C=y.address, c_row=n, batch=batch.numel(), c_batch=m * n)
    for view, t in ((p.A, a), (p.B, b)):
        view.data, view.row, view.column = machine.memory.put(t), t.stride(-2), t.stride(-1)
    if batch:
        p.a_offset, p.b_offset = (batch_offsets(machine, t).address for t in (a, b))
    p.bias = machine.memory.put(bias)
    p.activation = ACTIVATIONS.index(activation)
    p.preactivation = z.address if z else None
    p.accumulates = onto is not None
    machine.call("product", p)
    return _tensors(y, z)


def _heads(machine, t, batch):
    """The matrices of `t`, expanded to the batch, as a struct; without data where `t` is None."""
    heads = machine.structures.Heads()
    if t is not None:
        heads.first.data, heads.first.row, heads.first.column = machine.memory.put(t), t.stride(-2), t.stride(-1)
        heads.offset = batch_offsets(machine, t.expand(*batch, *t.shape[-2:])).address
    return heads


def _attention(machine, query, key, value, mask, is_causal, scale):
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    p = machine.structures.Attention(batch.numel(), query.shape[-2], *key.shape[-2:], value.shape[-1])
    p.q, p.k, p.v = (_heads(machine, t, batch) for t in (query, key, value))
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
        setattr(p, "allowed" if mask.dtype == torch.bool else "added", _heads(machine, mask, batch))
    p.is_causal, p.scale = is_causal, 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return p, batch


def scaled_dot_product_attention(machine, query, key, value, mask=None, is_causal=False, scale=None):
    of, batch = _attention(machine, query, key, value, mask, is_causal, scale)
    output = machine.memory.empty(*batch, query.shape[-2], value.shape[-1])
    machine.call("attention", machine.structures.AttentionOutput(of, output.address))
    return output.tensor


def scaled_dot_product_attention_gradient(
    machine, grad, query, key, value, mask=None, is_causal=False, scale=None, wanted=(True, True, True)
):
    """(dq, dk, dv) of every head, None where they are not wanted."""
    of, batch = _attention(machine, query, key, value, mask, is_causal, scale)
    found = [
        machine.memory.empty(*batch, *t.shape[-2:]) if w else None
        for t, w in zip((query, key, value), wanted, strict=True)
    ]
    p = machine.structures.AttentionGradient(of, _heads(machine, grad, batch), *_addresses(*found))
    machine.call("attention_gradient", p)
    return _tensors(*found)


def linear_gradient(machine, grad, saved=None, activation="none", bias=True):
    """(dz, dbias): dz is grad itself where there is no activation. `saved` may be relu's mask."""
    rows, columns = grad.shape
    dz = machine.memory.empty(rows, columns) if saved is not None else None
    dbias = machine.memory.empty(columns) if bias else None
    p = machine.structures.LinearGradient(rows, columns, machine.memory.put(grad), *grad.stride())
    p.activation = ACTIVATIONS.index(activation)
    setattr(p, "mask" if saved is not None and saved.dtype == torch.int64 else "saved", machine.memory.put(saved))
    p.dz, p.dbias = _addresses(dz, dbias)
    machine.call("linear_gradient", p)
    return dz.tensor if dz else grad, dbias.tensor if dbias else None


def linear_backward(machine, grad, x, weight, saved=None, activation="none"):
    """(dx, dweight, dbias), as the CPU launcher composes them."""
    dz, dbias = linear_gradient(machine, grad, saved, activation)
    return product(machine, dz, weight)[0], product(machine, dz.T, x)[0], dbias


def apply_function(machine, function, x):
    y = machine.memory.empty(*x.shape)
    machine.call("apply_function", FUNCTIONS.index(function), x.numel(), machine.memory.put(x), y.address)
    return y.tensor


def activation(machine, kind, x):
    y = machine.memory.empty(*x.shape)
    machine.call("activation", ACTIVATIONS.index(kind), x.numel(), machine.memory.put(x), y.address)
    return y.tensor


def activation_gradient(machine, kind, grad, saved):
    dx, put = machine.memory.empty(*grad.shape), machine.memory.put
    machine.call("activation_gradient", ACTIVATIONS.index(kind), grad.numel(), put(grad), put(saved), dx.address)
    return dx.tensor


def dropout(machine, x, p, key):
    y = machine.memory.empty(*x.shape)
    threshold = round(p * 2**32)
    threshold, scale = (threshold, 1 / (1 - p)) if threshold < 2**32 else (0, 0)
    d = machine.structures.Dropout(x.numel(), machine.memory.put(x), y.address, key % 2**64, threshold, scale)
    machine.call("dropout", d)
    return y.tensor


def sum_slices(machine, x):
    """The sum over the middle one of three dimensions."""
    outer, rows, inner = x.shape
    y, (x_outer, x_row, x_inner) = machine.memory.empty(outer, inner), x.stride()
    p = machine.structures.SliceSum(outer, rows, inner, machine.memory.put(x), x_outer, x_row, x_inner, y.address)
    machine.call("sum_slices", p)
    return y.tensor


def dot_product(machine, x, y):
    result = machine.memory.empty()
    p = machine.structures.DotProduct(len(x))
    p.x, p.x_stride = machine.memory.put(x), x.stride(0)
    p.y, p.y_stride = machine.memory.put(y), y.stride(0)
    p.result = result.address
    machine.call("dot_product", p)
    return result.tensor


def elementwise_loss(
    machine,
    loss,
    reduction,
    x,
    target,
    weight=None,
    pos_weight=None,
    mean_weight=None,
    grad=None,
    value=True,
    in_advance=None,
):
    """(value, dinput, dtarget) of contiguous arrays; the value only where it is wanted. `in_advance`: what the two
    gradients hold before."""
    shape = x.shape if reduction == "none" else (1,)
    value = machine.memory.empty(*shape) if value else None
    dinput, dtarget = (
        machine.memory.copy(t) if in_advance else machine.memory.empty(*x.shape) for t in in_advance or (x, x)
    )
    p = machine.structures.ElementwiseLossArrays(LOSSES.index(loss), REDUCTIONS.index(reduction), x.numel())
    p.in_advance = in_advance is not None
    p.input, p.target, p.weight, p.pos_weight = map(machine.memory.put, (x, target, weight, pos_weight))
    p.mean_weight, p.grad = machine.memory.put(mean_weight), machine.memory.put(grad)
    p.mean_weight_count = 0 if mean_weight is None else mean_weight.numel()
    p.value, p.dinput, p.dtarget = _addresses(value, dinput, dtarget)
    machine.call("elementwise_loss", p)
    return _tensors(value, dinput, dtarget)


def _row_shape(x, dim):
    """(outer, columns, inner) of contiguous rows along `dim`."""
    dim %= x.dim()
    return x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()


def softmax(machine, x, dim=-1, logarithm=False):
    outer, columns, inner = _row_shape(x, dim)
    y = machine.memory.empty(*x.shape)
    x_outer = x.stride(0) if x.dim() == 2 and inner == 1 else columns * inner
    p = machine.structures.Softmax(outer, columns, inner, machine.memory.put(x), x_outer, y.address, logarithm)
    machine.call("softmax", p)
    return y.tensor


def softmax_gradient(machine, grad, y, dim=-1, logarithm=False):
    dx, put = machine.memory.empty(*y.shape), machine.memory.put
    p = machine.structures.SoftmaxGradient(*_row_shape(y, dim), put(grad), put(y), dx.address, logarithm)
    machine.call("softmax_gradient", p)
    return dx.tensor


def _classification(machine, x, target, weight, reduction, ignore_index, grad, value):
    """The operands of a loss over classes, and the array of its value; x is (N, C) or (N, C, d)."""
    put, (outer, classes, inner) = machine.memory.put, _row_shape(x, 1)
    p = machine.structures.ClassificationLoss(outer, classes, inner, put(x), x.stride(0), ignore_index=ignore_index)
    if target.dtype == torch.int64:
        p.indices = put(target)
    else:
        p.probabilities = put(target)
    shape = (outer, *x.shape[2:]) if reduction == "none" else (1,)
    loss = machine.memory.empty(*shape) if value else None
    p.weight, p.grad, (p.loss,) = put(weight), put(grad), _addresses(loss)
    p.reduction = REDUCTIONS.index(reduction)
    return p, loss


def cross_entropy(
    machine,
    x,
    target,
    weight=None,
    reduction="mean",
    ignore_index=-100,
    smoothing=0.0,
    grad=None,
    value=True,
    in_advance=None,
):
    """(loss, dinput, dtarget): the last one of class probabilities alone. `in_advance`: what dinput holds before."""
    p, loss = _classification(machine, x, target, weight, reduction, ignore_index, grad, value)
    dinput = machine.memory.empty(*x.shape) if in_advance is None else machine.memory.copy(in_advance)
    dtarget = machine.memory.empty(*x.shape) if p.probabilities and in_advance is None else None
    p.in_advance = in_advance is not None
    p.dinput, p.dprobabilities = _addresses(dinput, dtarget)
    p.smoothed = smoothing > 0
    spread = smoothing / x.shape[1]
    p.kept, p.spread, p.on_target = 1 - smoothing, spread, 1 - smoothing + spread
    machine.call("cross_entropy", p)
    return _tensors(loss, dinput, dtarget)


def nll_loss(machine, x, target, weight=None, reduction="mean", ignore_index=-100, grad=None, value=True):
    """(loss, dinput)"""
    p, loss = _classification(machine, x, target, weight, reduction, ignore_index, grad, value)
    dinput = machine.memory.copy(torch.zeros(x.shape, dtype=x.dtype))
    p.dinput = dinput.address
    machine.call("nll_loss", p)
    return _tensors(loss, dinput)


def in_memory(machine, structure):
    """The address of a structure in the machine's memory."""
    return machine.memory.copy(torch.frombuffer(bytearray(structure), dtype=torch.uint8)).address


def graph(machine, inputs, numbers, result):
    """(inputs, numbers) where a graph's launches find them, and what the last one makes of its result."""
    memory, p = machine.memory, machine.structures.GraphArguments(count=len(numbers))
    copies = [memory.empty(*x.shape, dtype=x.dtype) for x in inputs]
    for entry, x, copy in zip(p.inputs, inputs, copies, strict=False):
        entry.source, entry.to, entry.count = memory.put(x), copy.address, x.nbytes // 4
    written = memory.empty(480, dtype=torch.int64)
    p.at, p.numbers[: len(numbers)] = written.address, numbers
    machine.call("begin_graph", p)
    made = memory.empty(*result.shape, dtype=result.dtype)
    place = memory.copy(torch.tensor([made.address]))
    machine.call("end_graph", memory.put(result), result.nbytes // 4, place.address)
    return [copy.tensor for copy in copies], written.tensor, made.tensor


def sgd_step(machine, rule, params, grads, buffers=None, first=False, recorded=False):
    """(params, buffers) after the step; the inputs stay as they are. `recorded`: by a rule in memory."""
    copy, structures = machine.memory.copy, machine.structures
    params, buffers = [copy(p) for p in params], [copy(b) for b in buffers] if buffers else [None] * len(params)
    tensors = (structures.SgdTensor * len(params))()
    for entry, p, g, b in zip(tensors, params, grads, buffers, strict=True):
        entry.count, entry.param, entry.grad, entry.first = p.tensor.numel(), p.address, machine.memory.put(g), first
        entry.buffer = b.address if b else None
    rule = structures.SgdRule(**rule)
    if recorded:
        machine.call("recorded_sgd_step", in_memory(machine, rule), tensors, len(params))
    else:
        machine.call("sgd_step", rule, tensors, len(params))
    return _tensors(*params), _tensors(*filter(None, buffers))


def adam_step(machine, rule, negative_step_size, scale, params, grads, *state, recorded=False):
    """[params, exp_avg, exp_avg_sq(, max_exp_avg_sq)] after the step; `state` holds the last two or three. `recorded`:
    by numbers in memory."""
    arrays = [[machine.memory.copy(t) for t in tensors] for tensors in (params, *state)]
    tensors = (machine.structures.AdamTensor * len(params))()
    names = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: len(arrays)]
    for i, entry in enumerate(tensors):
        entry.count, entry.grad = params[i].numel(), machine.memory.put(grads[i])
        entry.negative_step_size, entry.scale = (0, 0) if recorded else (negative_step_size, scale)
        for name, column in zip(names, arrays, strict=True):
            setattr(entry, name, column[i].address)
    rule = machine.structures.AdamRule(**rule)
    if recorded:
        numbers = machine.structures.AdamNumbers(rule, negative_step_size, scale)
        machine.call("recorded_adam_step", in_memory(machine, numbers), tensors, len(params))
    else:
        machine.call("adam_step", rule, tensors, len(params))
    return [_tensors(*column) for column in arrays]


def clip_gradients(machine, grads, max_norm):
    """(norm, clipped gradients)"""
    together = machine.memory.copy(torch.cat(grads) if grads else torch.empty(0, dtype=machine.dtype))
    parts = together.tensor.split([g.numel() for g in grads]) if grads else []
    real = torch.float64 if machine.dtype == torch.float64 else torch.float32
    norm = machine.memory.empty(1, dtype=real)
    tensors = (machine.structures.GradTensor * len(grads))()
    for entry, part in zip(tensors, parts, strict=True):
        entry.count, entry.grad = part.numel(), part.data_ptr()
    machine.call("gradient_norm", tensors, len(grads), norm.address)
    machine.call("clip_gradients", tensors, len(grads), max_norm, norm.address)
    return norm.tensor, list(parts)
