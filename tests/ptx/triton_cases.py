"""Every Triton kernel, compiled for an architecture, against the CPU library, bit for bit; a process of its own.

`python -m ptx.triton_cases 90 full` prints one JSON object: what failed by case, violations of the contract, and the
kernels that never ran. `full` is every case with several numbers of warps, `every` with the launchers' own, `brief`
each kernel once, row kernels with as many warps as a third argument says. Triton's interpreter, which tests/conftest.py
turns on, and its compiler exclude each other.
"""

import importlib
import json
import sys
import traceback

import torch
from accuracy import assert_same_bits

from .kernel_sources import kernel_sources
from .triton_usage import machine_for

SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, -1e-42, -0.0, 0.0, 3e38, -3e38])
FORWARD = {"gelu": "z", "relu": "y", "sigmoid": "y", "tanh": "y", "gelu_tanh": "z", "silu": "z"}
brief = False


def variants(given):
    """All of them, or the first, with which every kernel of a case runs."""
    return given[:1] if brief else given


def random(*shape, special=False):
    x = 3 * torch.randn(shape)
    if special:
        x.view(-1)[::17] = SPECIAL.repeat(x.numel())[: x.view(-1)[::17].numel()]
    return x


def check_into(name, gradients, *arguments):
    """<op>_backward_into leaves the gradients that it finds for a 1, and else writes those of the backward pass."""
    module = importlib.import_module(f"pytorch_ext.triton_kernels.{name.removesuffix('_backward_into')}")
    for number in (1.0, 0.7):
        found, one = [g.clone() for g in gradients], torch.tensor(number)
        getattr(module, name)(one, *found, *arguments)
        backward = getattr(torch.ops.pytorch_ext, name.removesuffix("_into"))
        mask = ([True] * 2)[: len(found)] + [False] * (2 - len(found))
        expected = gradients if number == 1 else backward(one, *arguments, mask)
        for i, (a, b) in enumerate(zip(found, expected, strict=False)):
            assert_same_bits(a, b, f"gradient {i} of {name} for {number}")


def compare(name, *arguments):
    """A function of the kernels' modules and the dispatcher's operator of the same name; the results."""
    from pytorch_ext.triton_path import launcher

    ours, theirs = launcher(name)(*arguments), getattr(torch.ops.pytorch_ext, name)(*arguments)
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, theirs)), strict=True)
    for i, (a, b) in enumerate(pairs):
        if b is not None and a is not None:
            assert_same_bits(a, b, f"result {i} of {name}")
    return theirs


def activations():
    for kind, saved in variants([*FORWARD.items()]):
        x, g = random(5, 70, special=True), random(5, 70)
        y = compare("activation_forward", x, kind)
        compare("activation_backward", g, y if saved == "y" else x, kind)


def linear(*sizes, activation="none"):
    for m, n, k in sizes:
        x, w, b = random(m, k, special=True), random(n, k), random(n)
        y, z = compare("linear_forward", x, w, b, activation)
        saved = {"none": None, "relu": y, "gelu": z}[activation]
        compare("linear_backward", random(m, n), random(m, k), w, saved, activation, [True] * 3)


def products():
    linear((5, 7, 257), (33, 3, 20), (1, 1, 1), activation="gelu")
    if brief:
        return
    linear((40, 70, 300), activation="relu")
    compare("linear_inference", random(9, 20), random(33, 20), random(33), "gelu")
    compare("matmul_forward", random(2, 20, 6)[..., ::2], random(2, 5, 3).mT)
    compare("matmul_forward", random(4500), random(9000)[::2])
    compare("matmul_backward", random(2, 20, 5), random(2, 20, 3), random(3, 5), [True] * 2)


def sums():
    from pytorch_ext.triton_kernels.reduce import sum_to_size

    from pytorch_ext import native

    for shape, sizes in variants([((300, 5), (5,)), ((9000,), ()), ((4, 5, 6), (5, 1))]):
        x = random(*shape)
        assert_same_bits(sum_to_size(x, sizes), native.library.sum_to_size(x, list(sizes)), f"sum of {shape}")


def dropout():
    for p, key in variants([(0.3, 11), (0.5, -(2**63)), (1.0, 1)]):
        compare("dropout_forward", random(1500, special=True), p, torch.tensor(key))


def softmax():
    for shape, logarithm in variants([((3, 10), False), ((2, 1100), True), ((2, 4200), False), ((2, 7, 3), True)]):
        y = compare("softmax_forward", random(*shape, special=shape[1] == 10), 1, logarithm)
        compare("softmax_backward", random(*shape), y, 1, logarithm)


def attention():
    """Heads that lie apart, in one launch whose programs have more than one block, and a few scores at a time."""
    module = importlib.import_module("pytorch_ext.triton_kernels.scaled_dot_product_attention")
    whole, name, module.multiprocessors = module.SCORES, "scaled_dot_product_attention", lambda device: 1
    cases = [
        ((2, 2, 40, 20, 70), None, False, whole),
        ((1, 2, 6, 6, 10), random(6, 10).masked_fill(torch.arange(6)[:, None] == 2, -float("inf")), False, 10),
        ((1, 2, 33, 6, 10), torch.arange(33 * 10).view(33, 10) % 3 > 0, False, whole),
        ((1, 1, 300, 5, 290), None, True, whole),
    ]
    for shape, mask, is_causal, module.SCORES in cases[:2] if brief else cases:
        outer, inner, queries, width, keys = shape
        q, k, v = (random(outer, n, inner, w).transpose(1, 2) for n, w in ((queries, width), (keys, width), (keys, 9)))
        output = compare(f"{name}_forward", q, k, v, mask, is_causal, 0.3)
        compare(f"{name}_backward", random(*output.shape), q, k, v, mask, is_causal, 0.3, [True] * 3)
    module.SCORES = whole


def cross_entropy():
    for shape, reduction, weighted, smoothing in variants(
        [((4, 10), 1, False, 0.0), ((3, 70), 2, True, 0.1), ((2, 4200), 0, False, 0.1)]
    ):
        x, target = random(*shape), torch.randint(shape[1], shape[:1])
        target[1] = -100
        options = (random(shape[1]).abs() if weighted else None, reduction, -100, smoothing)
        loss, _ = compare("cross_entropy_forward", x, target, *options, True)
        compare("cross_entropy_backward", random(*loss.shape), x, target, *options, [True, False])
        distribution = random(*shape).abs()
        loss, _ = compare("cross_entropy_forward", x, distribution, *options, True)
        compare("cross_entropy_backward", random(*loss.shape), x, distribution, *options, [True, True])
        if reduction:
            for given in (target, distribution):
                check_into("cross_entropy_backward_into", [random(*shape)], x, given, *options)


def nll_loss():
    for reduction, weighted in variants([(1, True), (0, False), (2, False)]):
        x, target = random(5, 7), torch.randint(7, (5,))
        options = (random(7).abs() if weighted else None, reduction, -100)
        loss = compare("nll_loss_forward", x, target, *options)
        compare("nll_loss_backward", random(*loss.shape), x, target, *options)


def elementwise_losses():
    for loss in variants(["binary_cross_entropy_with_logits", "mse_loss", "binary_cross_entropy"]):
        for shape, reduction, weighted in variants([((5000,), 1, False), ((70,), 0, True), ((3, 20), 2, True)]):
            x, target = (torch.rand(shape) for _ in range(2))
            weight = torch.rand(shape) if weighted else None
            pos_weight = torch.rand(shape) if weighted and "logits" in loss else None
            options = (weight, pos_weight, loss, reduction, [True, True])
            value, *_ = compare("elementwise_loss_forward", x, target, *options)
            compare("elementwise_loss_backward", random(*value.shape), x, target, *options)
            if reduction:
                into = [random(*shape), random(*shape)]
                check_into("elementwise_loss_backward_into", into, x, target, *options[:-1])


def updates():
    import pytorch_ext
    from pytorch_ext import optim

    shapes = (1,), (1030,), (0,), (3, 7), (4100,)

    def run(backend, name, options, dtype):
        torch.manual_seed(1)
        params = [torch.nn.Parameter(random(*shape).to(dtype)) for shape in shapes]
        optimizer = getattr(optim, name)(params, **options)
        with pytorch_ext.backend(backend):
            for _ in range(3):
                for p in params:
                    p.grad = random(*p.shape, special=p.dim() > 1).to(dtype)
                    p.grad[p.grad.isfinite().logical_not()] = 0.0
                norm = [optim.clip_grad_norm_(params, 5.0)]
                optimizer.step()
        return [p.detach() for p in params] + norm

    momentum = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    amsgrad = {"amsgrad": True, "weight_decay": 0.01, "maximize": True}
    cases = [("SGD", momentum), ("Adam", amsgrad), ("SGD", {"lr": 0.1}), ("Adam", {}), ("AdamW", {})]
    cases = [(*case, torch.float32) for case in cases] + [
        ("SGD", momentum, torch.float64),
        ("Adam", amsgrad, torch.float64),
    ]
    for case in cases[:2] if brief else cases:
        results = [run(path, *case) for path in ("triton", "native")]
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            assert_same_bits(a, b, f"result {i} of {case}")


def tensor_cores(machine):
    """Products outside the contract take the architecture's tensor cores, and from 9.0 on blocks come and go by TMA."""
    linear = importlib.import_module("pytorch_ext.triton_kernels.linear")
    product = importlib.import_module("pytorch_ext.triton_kernels.product")
    machine.compiled, precision_of = [], product.precision_of
    try:
        for dtype in (torch.float16, torch.bfloat16):
            x, w = torch.ones(256, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
            linear.linear_forward(x, w, w[0], "gelu")
            linear.linear_backward(x, x, w, x, "relu", [True, True, False])
        product.precision_of = lambda t: "tf32"
        linear.linear_forward(torch.ones(256, 256), torch.ones(256, 256), None, "none")
        products = [compiled.asm["ptx"] for name, compiled in machine.compiled if "product" in name]
        assert len(products) == 7
        machine.compiled.clear()
        heads = torch.ones(2, 256, 3, 256, dtype=torch.float16).transpose(1, 2)
        importlib.import_module("pytorch_ext.triton_kernels.matmul").matmul_forward(heads, heads.mT)
        products.append(machine.compiled[0][1].asm["ptx"].replace(".4d.", ".2d."))
        for text in products:
            for instruction in EXPECTED[machine.target.arch]:
                assert instruction in text, instruction
    finally:
        machine.compiled, product.precision_of = None, precision_of


# Of products by architecture: how blocks are multiplied, loaded and stored.
BULK = "cp.async.bulk.tensor.2d.shared::", "cp.async.bulk.tensor.2d.global.shared::cta"
EXPECTED = {80: ("mma.sync", "cp.async.c", "st.global"), 90: ("wgmma.mma_async", *BULK), 100: ("tcgen05.mma", *BULK)}


CASES = {f.__name__: f for f in (activations, products, sums, dropout, softmax, attention, cross_entropy, nll_loss)}
CASES |= {f.__name__: f for f in (elementwise_losses, updates, tensor_cores)}
WARPS = {"activations": (None, 1, 8), "sums": (None, 1, 8)}
WARPS |= dict.fromkeys(("softmax", "cross_entropy", "elementwise_losses", "dropout", "nll_loss", "updates"), (None, 2))
LARGE = {"attention": (4,), "products": (1, 2, 8)}  # further numbers, which tiles of products take long to compile for
SMALL = (5, 7, 40), (17, 30, 260)  # products whose tiles are small enough to compile for any number of warps


def run_case(machine, name, full):
    for warps in WARPS.get(name, (None,)) if full else (machine.warps,):
        machine.warps = warps if name in WARPS else None
        CASES[name](*([machine] if name == "tensor_cores" else []))
    for warps in LARGE.get(name, ()) if full else ():
        machine.warps = warps
        linear(*SMALL) if name == "products" else CASES[name]()


def main(architecture, extent, warps=None):
    global brief
    from pytorch_ext import triton_path

    machine, _ = machine_for(architecture)
    triton_path.problem = lambda: None  # there is no device, and none is needed
    failed, brief = {}, extent == "brief"
    for name in CASES:
        torch.manual_seed(20240611)
        machine.warps = warps
        try:
            run_case(machine, name, extent == "full")
            failed[name] = None
        except Exception:
            failed[name] = traceback.format_exc()
    never = sorted(kernel_sources().keys() - machine.launches.keys())
    print(json.dumps({"failed": failed, "violations": sorted(machine.violations), "never": never}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
