"""What is measured on a GPU beside cases.py: sizes that fill it, with the bytes or operations that each must cost."""

import torch
from cases import both, forward, optimizer_steps, stock

import pytorch_ext.functional as F

COLUMNS = (1024, 4096, 16384, 32768, 65536)
ELEMENTS = 2**27  # half a gigabyte of float32: several times the second-level cache


def along_rows(function):
    return lambda x: function(x, 1)


def gpu_products():
    for n in (1024, 2048, 4096, 8192):
        x, w = torch.randn(n, n), torch.randn(n, n)
        yield f"linear {n}x{n}x{n} forward", forward(F.linear, stock.linear, x, w), {"operations": 2 * n**3}
    for m, n, k in [(64, 128, 784), (300, 128, 784), (256, 1024, 784), (256, 1024, 1024), (4096, 4096, 1024)]:
        x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        yield f"linear {m}x{n}x{k} forward", forward(F.linear, stock.linear, x, w, b), {"operations": 2 * m * n * k}
        inputs = [t.clone().requires_grad_() for t in (x, w, b)]
        cost = {"operations": 6 * m * n * k}
        yield f"linear {m}x{n}x{k} forward+backward", both(F.linear, stock.linear, *inputs), cost


def gpu_low_precision():
    """Where PYTORCH_EXT_TENSOR_CORES is 1 products are our own, else both providers' are the stock operator's."""
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for m, n, k in [(n, n, n) for n in (1024, 2048, 4096, 8192)] + [(4096, 4096, 1024), (8192, 1024, 4096)]:
            x, w, b = (torch.randn(shape, dtype=dtype) for shape in ((m, k), (n, k), (n,)))
            shape, cost = f"{m}x{n}x{k} {name}", {"operations": 2 * m * n * k}
            yield f"linear {shape} forward", forward(F.linear, stock.linear, x, w), cost
            yield f"matmul {shape} forward", forward(F.matmul, torch.matmul, x, w.mT.contiguous()), cost
            yield f"linear+relu {shape} forward", forward(fused_relu, stock_relu, x, w, b), cost
            inputs = [t.clone().requires_grad_() for t in (x, w, b)]
            cost = {"operations": 6 * m * n * k}
            yield f"linear+relu {shape} forward+backward", both(fused_relu, stock_relu, *inputs), cost


def fused_relu(x, w, b):
    return F.linear(x, w, b, activation="relu")


def stock_relu(x, w, b):
    return stock.linear(x, w, b).relu()


def gpu_rows():
    for columns in COLUMNS:
        rows = ELEMENTS // columns
        size = 4 * rows * columns
        x, target = torch.randn(rows, columns), torch.randint(columns, (rows,))
        shape = f"{rows}x{columns}"
        for name in ("softmax", "log_softmax"):
            ours, theirs = along_rows(getattr(F, name)), along_rows(getattr(stock, name))
            yield f"{name} {shape} forward", forward(ours, theirs, x), {"bytes": 2 * size}
        yield (
            f"cross_entropy {shape} forward",
            forward(F.cross_entropy, stock.cross_entropy, x, target),
            {"bytes": size},
        )
        leaf = x.requires_grad_()
        yield f"softmax {shape} forward+backward", both(ours, theirs, leaf), {"bytes": 5 * size}
        providers = both(F.cross_entropy, stock.cross_entropy, leaf, target)
        yield f"cross_entropy {shape} forward+backward", providers, {"bytes": 2 * size}


def gpu_elementwise():
    x, y = torch.randn(ELEMENTS), torch.rand(ELEMENTS)
    size = 4 * ELEMENTS
    for name in ("relu", "sigmoid", "tanh", "gelu", "silu"):
        yield f"{name} {ELEMENTS} forward", forward(getattr(F, name), getattr(stock, name), x), {"bytes": 2 * size}
    yield f"dropout {ELEMENTS} forward", forward(F.dropout, stock.dropout, x), {"bytes": 2 * size}
    leaf = x.requires_grad_()
    for name in ("mse_loss", "binary_cross_entropy_with_logits"):
        yield (
            f"{name} {ELEMENTS} forward+backward",
            both(getattr(F, name), getattr(stock, name), leaf, y),
            {"bytes": 3 * size},
        )


def many_parameters():
    return [torch.randn(2**20, requires_grad=True) for _ in range(64)]


def gpu_optimizers():
    for name, arrays in (("SGD", 3), ("Adam", 7), ("AdamW", 7)):  # read or written per element
        cost = {"bytes": arrays * 4 * 2**26}
        yield f"{name}, 2^26 parameters in 64 tensors", optimizer_steps(name, many_parameters), cost


GPU_GROUPS = {
    "gpu_products": gpu_products,
    "gpu_low_precision": gpu_low_precision,
    "gpu_rows": gpu_rows,
    "gpu_elementwise": gpu_elementwise,
    "gpu_optimizers": gpu_optimizers,
}
