"""What is measured: operators by shape, optimisers; step_cases.py has whole training steps.

A case is (name, providers, what it must cost): float32 operations, or bytes read and written at least.
"""

import functools

import torch
from converted_cases import converted
from providers import backward, beside, both, by_onednn, forward, in_medium_precision, with_avx2
from step_cases import perceptron, training_steps

import pytorch_ext.functional as F
from pytorch_ext import optim

stock = torch.nn.functional
# Rows, columns and depth: models' layers, squares, odd sizes, few rows, few columns.
PRODUCTS = [
    (1, 1, 1),
    (1, 128, 784),
    (1, 1000, 784),
    (3, 5, 10),
    (64, 10, 128),
    (64, 128, 784),
    (97, 131, 517),
    (256, 1024, 1024),
    (1024, 1024, 1024),
    (4096, 16, 1024),
    (16, 4096, 1024),
]
# Of these torch.compile is measured too, which takes seconds each; of training steps always.
COMPILED = {(64, 128, 784), (1024, 1024, 1024), (64, 10), (4096, 1024)}


def products():
    for m, n, k in PRODUCTS:
        shape, compile = f"{m}x{n}x{k}", (m, n, k) in COMPILED
        x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        operations, bytes = 2 * m * n * k, 4 * (m * k + n * k + m * n)
        providers = beside(forward, F.linear, stock.linear, x, w, b, compile=compile)
        if m * n * k >= 2**20:
            providers |= with_avx2(providers["ours"]) | by_onednn(x, w)
            providers["bfloat16 inside"] = in_medium_precision(providers["stock"])
        limit = {"bytes": bytes} if m == 1 else {"operations": operations}
        yield f"linear {shape} forward", providers, limit
        inputs = [t.clone().requires_grad_() for t in (x, w, b)]
        limit = {"operations": 3 * operations}
        yield f"linear {shape} backward", backward(F.linear, stock.linear, *inputs), {"operations": 2 * operations}
        providers = beside(both, F.linear, stock.linear, *inputs, compile=compile)
        yield f"linear {shape} forward+backward", providers, limit


def other_products():
    x, w = torch.randn(64, 784), torch.randn(128, 784)
    yield (
        "linear+relu 64x128x784 forward",
        forward(lambda x, w: F.linear(x, w, activation="relu"), lambda x, w: stock.linear(x, w).relu(), x, w),
        {"operations": 2 * 64 * 128 * 784},
    )
    shapes = {
        "16 of 64x64x64": ((16, 64, 64), (16, 64, 64)),
        "64 of 4x4x4": ((64, 4, 4), (64, 4, 4)),
        "32x8x8 by 8x8": ((32, 8, 8), (8, 8)),
        "512x512x512": ((512, 512), (512, 512)),
        "1000x784 by a vector": ((1000, 784), (784,)),
        "4096x1024 by a vector": ((4096, 1024), (1024,)),
        "a dot of 784": ((784,), (784,)),
        "a dot of 1000000": ((1_000_000,), (1_000_000,)),
        "a column by a row of 1000": ((1000, 1), (1, 1000)),
    }
    for name, sizes in shapes.items():
        a, b = (torch.randn(size) for size in sizes)
        yield f"matmul {name} forward", forward(F.matmul, torch.matmul, a, b), {}
        inputs = [t.clone().requires_grad_() for t in (a, b)]
        yield f"matmul {name} forward+backward", both(F.matmul, torch.matmul, *inputs), {}
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    limit = {"operations": 2 * 512**3}
    yield "matmul 512x512x512, both transposed forward", forward(F.matmul, torch.matmul, a.T, b.T), limit
    a, b = torch.randn(1024, 1024)[::2, ::2], torch.randn(512, 1024)[:, ::2]
    yield "matmul 512x512x512, every other element forward", forward(F.matmul, torch.matmul, a, b), limit


ROWS = [(1, 1), (3, 5), (64, 10), (97, 131), (4096, 1024), (512, 32000)]
MOST_ELEMENTWISE = 1e7


def along_rows(function):
    return lambda x: function(x, 1)


def attention():
    op = "scaled_dot_product_attention"
    for shape in [(2, 4, 16, 16), (8, 8, 128, 64), (8, 8, 512, 64), (2, 12, 1024, 64)]:
        batch, heads, length, width = shape
        operations = 4 * batch * heads * length**2 * width
        for causal in (False, True):
            functions = [functools.partial(getattr(ns, op), is_causal=causal) for ns in (F, stock)]
            inputs = [torch.randn(shape) for _ in range(3)]
            leaves = [t.clone().requires_grad_() for t in inputs]
            name = f"{op} {'x'.join(map(str, shape))}{', causal' if causal else ''}"
            needed = operations // 2 if causal else operations
            yield f"{name} forward", forward(*functions, *inputs), {"operations": needed}
            yield f"{name} forward+backward", both(*functions, *leaves), {"operations": 3 * needed}


def rows():
    for m, n in ROWS:
        yield from softmaxes(m, n)
        x, target = torch.randn(m, n, requires_grad=True), torch.randint(0, n, (m,))
        compile, bytes = (m, n) in COMPILED, 4 * m * n
        for name, limit in (("cross_entropy", 2 * bytes), ("nll_loss", bytes)):
            if name == "cross_entropy" or m * n <= MOST_ELEMENTWISE:
                providers = beside(both, getattr(F, name), getattr(stock, name), x, target, compile=compile)
                yield f"{name} {m}x{n} forward+backward", providers, {"bytes": limit}
    x = torch.randn(1024, 4096).T
    yield "softmax 4096x1024, transposed forward", forward(along_rows(F.softmax), along_rows(stock.softmax), x), {}


def softmaxes(m, n):
    x, compile, bytes = torch.randn(m, n), (m, n) in COMPILED, 4 * m * n
    for name in ("softmax", "log_softmax"):
        functions = along_rows(getattr(F, name)), along_rows(getattr(stock, name))
        leaf = x.clone().requires_grad_()
        yield f"{name} {m}x{n} forward", beside(forward, *functions, x, compile=compile), {"bytes": 2 * bytes}
        yield f"{name} {m}x{n} backward", backward(*functions, leaf), {"bytes": 3 * bytes}
        providers = beside(both, *functions, leaf, compile=compile)
        yield f"{name} {m}x{n} forward+backward", providers, {"bytes": 5 * bytes}


def elementwise():
    for m, n in ROWS:
        if m * n > MOST_ELEMENTWISE:
            continue
        compile, bytes = (m, n) in COMPILED, 4 * m * n
        x, y, probability = torch.randn(m, n), torch.randn(m, n), torch.rand(m, n)
        for name in ("mse_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy"):
            leaf = (probability if name == "binary_cross_entropy" else x).clone().requires_grad_()
            target = y if name == "mse_loss" else torch.rand(m, n)
            providers = beside(both, getattr(F, name), getattr(stock, name), leaf, target, compile=compile)
            yield f"{name} {m}x{n} forward+backward", providers, {"bytes": 3 * bytes}
        for name in ("relu", "sigmoid", "tanh", "gelu", "silu", "dropout"):
            functions, leaf = (getattr(F, name), getattr(stock, name)), x.clone().requires_grad_()
            yield f"{name} {m}x{n} forward", forward(*functions, x), {"bytes": 2 * bytes}
            yield f"{name} {m}x{n} forward+backward", both(*functions, leaf), {"bytes": 5 * bytes}


def low_precision():
    dtype = torch.bfloat16
    for m, n, k in [(1, 128, 784), (64, 10, 128), (64, 128, 784), (1024, 1024, 1024)]:
        inputs = [torch.randn(size, dtype=dtype) for size in ((m, k), (n, k), (n,))]
        shape, leaves = f"{m}x{n}x{k} bfloat16", [t.clone().requires_grad_() for t in inputs]
        yield f"linear {shape} forward", forward(F.linear, stock.linear, *inputs), {}
        yield f"linear {shape} forward+backward", both(F.linear, stock.linear, *leaves), {}
    for m, n in [(64, 10), (4096, 1024)]:
        x, target, bytes = torch.randn(m, n, dtype=dtype), torch.randint(0, n, (m,)), 2 * m * n
        y, leaf, shape = torch.randn(m, n, dtype=dtype), x.clone().requires_grad_(), f"{m}x{n} bfloat16"
        functions = along_rows(F.softmax), along_rows(stock.softmax)
        yield f"softmax {shape} forward", forward(*functions, x), {"bytes": 2 * bytes}
        providers = both(F.cross_entropy, stock.cross_entropy, leaf, target)
        yield f"cross_entropy {shape} forward+backward", providers, {"bytes": 2 * bytes}
        yield f"mse_loss {shape} forward+backward", both(F.mse_loss, stock.mse_loss, leaf, y), {"bytes": 3 * bytes}
        for name in ("relu", "gelu"):
            yield f"{name} {shape} forward", forward(getattr(F, name), getattr(stock, name), x), {"bytes": 2 * bytes}


def last_layers():
    """The loss of a last linear layer, beside stock's two ways: logits stored whole, and its own chunks."""
    for rows, features, classes in [(64, 128, 10), (1024, 256, 8000), (2048, 512, 32000)]:
        x, w = (torch.randn(n, features).requires_grad_() for n in (rows, classes))
        target = torch.randint(0, classes, (rows,))

        def two_functions(x, w, target):
            return stock.cross_entropy(stock.linear(x, w), target)

        calls = both(F.linear_cross_entropy, two_functions, x, w, target)
        if hasattr(stock, "linear_cross_entropy"):
            options = torch.nn.LinearCrossEntropyOptions()

            def chunks(x, w, target, options=options):
                return stock.linear_cross_entropy(x, w, target, options=options)

            calls["stock, chunks"] = both(F.linear_cross_entropy, chunks, x, w, target)["stock"]
        limit = {"operations": 6 * rows * features * classes}
        yield f"linear_cross_entropy {rows}x{features}x{classes} forward+backward", calls, limit


def optimizer_steps(name, make_parameters):
    """The step of every provider of that optimiser, on parameters of its own."""
    providers = {}
    for provider, ns, more in [
        ("ours", optim, {}),
        ("stock", torch.optim, {}),
        ("stock, fused", torch.optim, {"fused": True}),
    ]:
        parameters = with_gradients(make_parameters())
        providers[provider] = getattr(ns, name)(parameters, lr=1e-3, **more).step
    return providers


def with_gradients(parameters):
    parameters = list(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def parameters_of_the_classifier():
    return perceptron(torch.nn, (784, 128, 10), fused=False).parameters()


def optimizers():
    many = "101,770 parameters in 4 tensors"
    for name in ("SGD", "Adam", "AdamW"):
        yield f"{name}, {many}", optimizer_steps(name, parameters_of_the_classifier), {}
    parameters = with_gradients(parameters_of_the_classifier())
    clip, stock_clip = optim.clip_grad_norm_, torch.nn.utils.clip_grad_norm_
    yield (
        f"clip_grad_norm_, {many}",
        {"ours": lambda: clip(parameters, 1.0), "stock": lambda: stock_clip(parameters, 1.0)},
        {},
    )


GROUPS = {
    "products": products,
    "other products": other_products,
    "attention": attention,
    "rows": rows,
    "elementwise": elementwise,
    "low precision": low_precision,
    "last layers": last_layers,
    "optimizers": optimizers,
    "steps": training_steps,
    "converted": converted,
}
