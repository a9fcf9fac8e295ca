"""The launchers as functions of torch tensors, on any machine; results are tensors in the machine's memory."""

import torch

from . import arguments as args


def product(machine, a, b, bias=None, activation="none", preactivation=False):
    """(activation(a b + bias), a b + bias or None), a (..., M, K) and b (..., K, N) with equal leading dimensions."""
    batch = a.shape[:-2].numel()
    a, b = (t if t.dim() <= 3 else t.flatten(0, -3) for t in (a, b))
    (m, k), n = a.shape[-2:], b.shape[-1]
    y = machine.memory.empty(batch, m, n)
    z = machine.memory.empty(batch, m, n) if preactivation else None
    p = args.Product(M=m, N=n, K=k, C=y.address, c_row=n, batch=batch, c_batch=m * n)
    for view, t in ((p.A, a), (p.B, b)):
        view.data, view.row, view.column = machine.memory.put(t), t.stride(-2), t.stride(-1)
    if a.dim() == 3:
        p.a_offset, p.b_offset = (machine.memory.put(torch.arange(batch) * t.stride(0)) for t in (a, b))
    p.bias = machine.memory.put(bias)
    p.activation = args.ACTIVATIONS.index(activation)
    p.preactivation = z.address if z else None
    machine.call("product", p)
    shape = (*a.shape[:-2], m, n)
    return y.tensor.view(shape), z.tensor.view(shape) if z else None


def linear_gradient(machine, grad, saved=None, activation="none", bias=True):
    """(dz, dbias): dz is grad itself where there is no activation."""
    rows, columns = grad.shape
    dz = machine.memory.empty(rows, columns) if saved is not None else None
    dbias = machine.memory.empty(columns) if bias else None
    p = args.LinearGradient(rows=rows, columns=columns, grad=machine.memory.put(grad), saved=machine.memory.put(saved))
    p.grad_row, p.grad_column = grad.stride()
    p.activation = args.ACTIVATIONS.index(activation)
    p.dz, p.dbias = (t.address if t else None for t in (dz, dbias))
    machine.call("linear_gradient", p)
    return dz.tensor if dz else grad, dbias.tensor if dbias else None


def linear_backward(machine, grad, x, weight, saved=None, activation="none"):
    """(dx, dweight, dbias), as the CPU launcher composes them."""
    dz, dbias = linear_gradient(machine, grad, saved, activation)
    return product(machine, dz, weight)[0], product(machine, dz.T, x)[0], dbias


def elementwise_loss(machine, loss, reduction, x, target, weight=None, pos_weight=None, mean_weight=None, grad=None):
    """(value, dinput, dtarget) of contiguous arrays."""
    shape = x.shape if reduction == "none" else (1,)
    value, dinput, dtarget = (machine.memory.empty(*s) for s in (shape, x.shape, x.shape))
    p = args.ElementwiseLossArrays(count=x.numel(), value=value.address, dinput=dinput.address, dtarget=dtarget.address)
    p.loss, p.reduction = args.LOSSES.index(loss), args.REDUCTIONS.index(reduction)
    p.input, p.target, p.weight, p.pos_weight = map(machine.memory.put, (x, target, weight, pos_weight))
    p.mean_weight, p.grad = machine.memory.put(mean_weight), machine.memory.put(grad)
    p.mean_weight_count = 0 if mean_weight is None else mean_weight.numel()
    machine.call("elementwise_loss", p)
    return value.tensor, dinput.tensor, dtarget.tensor


def _row_shape(x, dim):
    """(outer, columns, inner) of contiguous rows along `dim`."""
    dim %= x.dim()
    return x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()


def softmax(machine, x, dim=-1, logarithm=False):
    outer, columns, inner = _row_shape(x, dim)
    y = machine.memory.empty(*x.shape)
    x_outer = x.stride(0) if x.dim() == 2 and inner == 1 else columns * inner
    p = args.Softmax(outer, columns, inner, machine.memory.put(x), x_outer, y.address, logarithm)
    machine.call("softmax", p)
    return y.tensor


def softmax_gradient(machine, grad, y, dim=-1, logarithm=False):
    dx, put = machine.memory.empty(*y.shape), machine.memory.put
    p = args.SoftmaxGradient(*_row_shape(y, dim), put(grad), put(y), dx.address, logarithm)
    machine.call("softmax_gradient", p)
    return dx.tensor


def cross_entropy(machine, x, target, weight=None, reduction="mean", ignore_index=-100, smoothing=0.0, grad=None):
    """(loss, dinput) for class indices; x is (N, C) or (N, C, d)."""
    outer, classes, inner = _row_shape(x, 1)
    loss = machine.memory.empty(*(target.shape if reduction == "none" else (1,)))
    dinput, put = machine.memory.empty(*x.shape), machine.memory.put
    p = args.ClassificationLoss(outer, classes, inner, put(x), x.stride(0), put(target), ignore_index=ignore_index)
    p.weight, p.grad, p.loss, p.dinput = put(weight), put(grad), loss.address, dinput.address
    p.smoothed = smoothing > 0
    p.kept, p.spread, p.on_target = 1 - smoothing, smoothing / classes, 1 - smoothing + smoothing / classes
    p.reduction = args.REDUCTIONS.index(reduction)
    machine.call("cross_entropy", p)
    return loss.tensor, dinput.tensor


def _copies(machine, tensors):
    copies = []
    for t in tensors:
        array = machine.memory.empty(*t.shape)
        array.numpy[...] = t.numpy()
        copies.append(array)
    return copies


def sgd_step(machine, rule, params, grads, buffers=None, first=False):
    """(params, buffers) after the step; the inputs stay as they are."""
    params = _copies(machine, params)
    buffers = _copies(machine, buffers) if buffers else [None] * len(params)
    tensors = (args.SgdTensor * len(params))()
    for entry, p, g, b in zip(tensors, params, grads, buffers, strict=True):
        entry.count, entry.param, entry.grad, entry.first = p.numpy.size, p.address, machine.memory.put(g), first
        entry.buffer = b.address if b else None
    machine.call("sgd_step", args.SgdRule(**rule), tensors, len(params))
    return [p.tensor for p in params], [b.tensor for b in buffers if b]


def adam_step(machine, rule, negative_step_size, scale, params, grads, *state):
    """[params, exp_avg, exp_avg_sq(, max_exp_avg_sq)] after the step; `state` holds the last two or three."""
    arrays = [_copies(machine, tensors) for tensors in (params, *state)]
    tensors = (args.AdamTensor * len(params))()
    names = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: len(arrays)]
    for i, entry in enumerate(tensors):
        entry.count, entry.grad = params[i].numel(), machine.memory.put(grads[i])
        entry.negative_step_size, entry.scale = negative_step_size, scale
        for name, column in zip(names, arrays, strict=True):
            setattr(entry, name, column[i].address)
    machine.call("adam_step", args.AdamRule(**rule), tensors, len(params))
    return [[a.tensor for a in column] for column in arrays]
