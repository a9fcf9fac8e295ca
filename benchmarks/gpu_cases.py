"""What is measured on a GPU beside cases.py: sizes that fill it, with the bytes or operations that each must cost.

Ours is what `auto` chooses; CUDA C++ and Triton stand beside it, and for some sizes what torch.compile makes of stock.
What a case costs names the op, and the dtype and the elements of its first argument, by which `auto` chooses.
"""

import functools

import providers
import torch
from cases import along_rows, optimizer_steps, stock, with_gradients
from step_cases import training_epochs

import pytorch_ext.functional as F
from pytorch_ext import backends, optim

COMPILED = (4096, 2**27)  # columns, or elements: a compilation takes seconds


def on(backend, function):
    """The function on one path, switched without the checks of ``pytorch_ext.backend``, which take longer than it."""
    choice = backends.choice
    wanted = backend, backends._BACKENDS[backend]

    def call(*arguments):
        before = choice.name, choice.kernels
        choice.name, choice.kernels = wanted
        try:
            return function(*arguments)
        finally:
            choice.name, choice.kernels = before

    return call


def paths():
    """{name: backend} of our paths that are here on their own."""
    here = backends.available_backends()
    return {label: name for label, name in (("CUDA C++", "native"), ("Triton", "triton")) if name in here}


def on_every_path(measure, ours, theirs, *inputs, compiled=False):
    """The providers of ``measure``, one of providers.py: ours by every path too, and stock by every way."""
    found = providers.beside(measure, ours, theirs, *inputs, compile=compiled)
    return found | {label: measure(on(path, ours), theirs, *inputs)["ours"] for label, path in paths().items()}


forward, both = (functools.partial(on_every_path, measure) for measure in (providers.forward, providers.both))


def cost(op, x, **limit):
    return {"op": op, "dtype": str(x.dtype).removeprefix("torch."), "elements": x.numel(), **limit}


COLUMNS = (1024, 4096, 16384, 32768, 50257, 65536)  # 50257: a vocabulary, and odd
ATTENTION = ((64, 128, False), (16, 512, False), (8, 1024, False), (8, 1024, True))  # batch, length, causality
ELEMENTS = 2**27  # half a gigabyte of float32: several times the second-level cache
TENSOR_ELEMENTS = 2**20  # of each parameter that the optimisers get


def gpu_products():
    for n in (1024, 2048, 4096, 8192):
        x, w = torch.randn(n, n), torch.randn(n, n)
        providers = forward(F.linear, stock.linear, x, w, compiled=n in COMPILED)
        yield f"linear {n}x{n}x{n} forward", providers, cost("linear", x, operations=2 * n**3)
    for m, n, k in [(64, 128, 784), (300, 128, 784), (256, 1024, 784), (256, 1024, 1024), (4096, 4096, 1024)]:
        x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        providers = forward(F.linear, stock.linear, x, w, b)
        yield f"linear {m}x{n}x{k} forward", providers, cost("linear", x, operations=2 * m * n * k)
        inputs = [t.clone().requires_grad_() for t in (x, w, b)]
        limit = cost("linear", x, operations=6 * m * n * k)
        yield f"linear {m}x{n}x{k} forward+backward", both(F.linear, stock.linear, *inputs), limit


def gpu_low_precision():
    """Where PYTORCH_EXT_TENSOR_CORES is 1 products are our own, else both providers' are the stock operator's."""
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for m, n, k in [(n, n, n) for n in (1024, 2048, 4096, 8192)] + [(4096, 4096, 1024), (8192, 1024, 4096)]:
            x, w, b = (torch.randn(shape, dtype=dtype) for shape in ((m, k), (n, k), (n,)))
            shape, limit = f"{m}x{n}x{k} {name}", cost("linear", x, operations=2 * m * n * k)
            yield f"linear {shape} forward", forward(F.linear, stock.linear, x, w), limit
            yield f"matmul {shape} forward", forward(F.matmul, torch.matmul, x, w.mT.contiguous()), limit
            yield f"linear+relu {shape} forward", forward(fused_relu, stock_relu, x, w, b), limit
            inputs = [t.clone().requires_grad_() for t in (x, w, b)]
            limit = cost("linear", x, operations=6 * m * n * k)
            yield f"linear+relu {shape} forward+backward", both(fused_relu, stock_relu, *inputs), limit


def fused_relu(x, w, b):
    return F.linear(x, w, b, activation="relu")


def stock_relu(x, w, b):
    return stock.linear(x, w, b).relu()


def gpu_rows():
    for columns in COLUMNS:
        rows, compiled = ELEMENTS // columns, columns in COMPILED
        size = 4 * rows * columns
        x, target = torch.randn(rows, columns), torch.randint(columns, (rows,))
        shape = f"{rows}x{columns}"
        for name in ("softmax", "log_softmax"):
            ours, theirs = along_rows(getattr(F, name)), along_rows(getattr(stock, name))
            providers = forward(ours, theirs, x, compiled=compiled)
            yield f"{name} {shape} forward", providers, cost(name, x, bytes=2 * size)
        entropy = F.cross_entropy, stock.cross_entropy
        providers = forward(*entropy, x, target, compiled=compiled)
        yield f"cross_entropy {shape} forward", providers, cost("cross_entropy", x, bytes=size)
        leaf = x.requires_grad_()
        providers = both(ours, theirs, leaf, compiled=compiled)
        yield f"{name} {shape} forward+backward", providers, cost(name, x, bytes=5 * size)
        providers = both(*entropy, leaf, target, compiled=compiled)
        yield f"cross_entropy {shape} forward+backward", providers, cost("cross_entropy", x, bytes=2 * size)


def gpu_attention():
    op, heads, width = "scaled_dot_product_attention", 12, 64
    for batch, length, causal in ATTENTION:
        functions = [functools.partial(getattr(namespace, op), is_causal=causal) for namespace in (F, stock)]
        inputs = [torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3)]
        operations = 4 * batch * heads * length**2 * width // (2 if causal else 1)
        name = f"{op} {batch}x{heads}x{length}x{width}{', causal' if causal else ''}"
        values = [t.detach() for t in inputs]
        yield f"{name} forward", forward(*functions, *values), cost(op, values[0], operations=operations)
        limit = cost(op, values[0], operations=3 * operations)
        yield f"{name} forward+backward", both(*functions, *inputs), limit


def gpu_elementwise():
    x, y = torch.randn(ELEMENTS), torch.rand(ELEMENTS)
    size, compiled = 4 * ELEMENTS, ELEMENTS in COMPILED
    for name in ("relu", "sigmoid", "tanh", "gelu", "silu"):
        providers = forward(getattr(F, name), getattr(stock, name), x, compiled=compiled)
        yield f"{name} {ELEMENTS} forward", providers, cost("activation", x, bytes=2 * size)
    providers = forward(F.dropout, stock.dropout, x, compiled=compiled)
    yield f"dropout {ELEMENTS} forward", providers, cost("dropout", x, bytes=2 * size)
    leaf = x.requires_grad_()
    for name in ("mse_loss", "binary_cross_entropy_with_logits"):
        providers = both(getattr(F, name), getattr(stock, name), leaf, y, compiled=compiled)
        yield f"{name} {ELEMENTS} forward+backward", providers, cost(name, x, bytes=3 * size)


def many_parameters():
    return [torch.randn(TENSOR_ELEMENTS, requires_grad=True) for _ in range(64)]


def gpu_optimizers():
    for name, arrays in (("SGD", 3), ("Adam", 7), ("AdamW", 7)):  # read or written per element
        providers = optimizer_steps(name, many_parameters)
        params = with_gradients(many_parameters())
        providers |= {label: on(path, getattr(optim, name)(params, lr=1e-3).step) for label, path in paths().items()}
        count = 64 * TENSOR_ELEMENTS
        limit = {"op": f"{name.lower().removesuffix('w')}_step", "dtype": "float32", "elements": count}
        yield f"{name}, {count} parameters in 64 tensors", providers, {**limit, "bytes": arrays * 4 * count}


GPU_GROUPS = {
    "gpu_products": gpu_products,
    "gpu_low_precision": gpu_low_precision,
    "gpu_rows": gpu_rows,
    "gpu_attention": gpu_attention,
    "gpu_elementwise": gpu_elementwise,
    "gpu_optimizers": gpu_optimizers,
    "gpu_steps": training_epochs,
}
