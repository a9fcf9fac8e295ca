"""Registers, spills and shared memory of Triton's kernels at the sizes that count, as ptxas has them; nothing runs.

`python -m ptx.triton_usage 90` prints one JSON object: {what: [{kernel, registers, spilled bytes, shared bytes}]}; a
second argument is what names must contain. A process of its own, like triton_cases.py.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

MULTIPROCESSORS = 132


def machine_for(architecture):
    """(a machine on which the launchers of Triton's kernels run, their modules)"""
    from pytorch_ext import triton_path

    from .triton_machine import TritonMachine

    machine, kernels = TritonMachine(architecture), triton_path.kernels
    kernels.launch.run, kernels.launch.can_run_on = machine.run, lambda device: True
    tensor_cores = kernels.tensor_cores
    tensor_cores.capability = lambda device: divmod(architecture, 10)
    for module in (tensor_cores, kernels.scaled_dot_product_attention):
        module.multiprocessors = lambda device: MULTIPROCESSORS
    return machine, kernels


def launches(kernels):
    """(what, a function that launches it)"""
    linear, precision_of = kernels.linear, kernels.product.precision_of
    for n, precision, dtype in [
        *((n, "float32", torch.float32) for n in (20, 1024)),
        *((n, "bfloat16", torch.bfloat16) for n in (256, 2048, 4096)),
        *((n, "tf32", torch.float32) for n in (256, 2048, 4096)),
    ]:
        x, name = torch.empty(n, n, dtype=dtype), f"product {n}x{n}x{n}, {precision}"
        kernels.product.precision_of = lambda t, p=precision: "tf32" if p == "tf32" else "ieee"
        yield name, lambda x=x: linear.linear_forward(x, x, x[0], "relu")
        yield f"{name}, gelu", lambda x=x: linear.linear_forward(x, x, x[0], "gelu")
        yield f"{name}, gradients", lambda x=x: linear.linear_backward(x, x, x, None, "none", [True, True, False])
    kernels.product.precision_of = precision_of
    batch = torch.empty(16, 4096, 8, 128, dtype=torch.bfloat16).transpose(1, 2)
    yield "products of a batch, bfloat16", lambda: kernels.matmul.matmul_forward(batch, batch.mT)
    for columns in (1024, 4096, 32768):
        x, target = torch.empty(8, columns), torch.zeros(8, dtype=torch.int64)
        yield f"softmax, {columns} columns", lambda x=x: kernels.softmax.softmax_forward(x, 1, False)
        yield f"softmax backward, {columns} columns", lambda x=x: kernels.softmax.softmax_backward(x, x, 1, False)
        options = None, 1, -100, 0.0, True
        entropy = kernels.cross_entropy.cross_entropy_forward
        yield f"cross entropy, {columns} classes", lambda x=x, t=target, e=entropy, o=options: e(x, t, *o)
    attention, heads = kernels.scaled_dot_product_attention, torch.empty(4, 16, 1024, 64)
    options = None, True, None
    yield "attention", lambda: attention.scaled_dot_product_attention_forward(heads, heads, heads, *options)
    yield (
        "attention, gradients",
        lambda: attention.scaled_dot_product_attention_backward(*[heads] * 4, *options, [True] * 3),
    )
    x = torch.empty(2**20)
    yield "gelu", lambda: kernels.activation.activation_forward(x, "gelu")
    loss = x, x, None, None, "mse_loss", 1, [True, True]
    yield "mse_loss", lambda: kernels.elementwise_loss.elementwise_loss_forward(*loss)
    yield "dropout", lambda: kernels.dropout.dropout_forward(x, 0.5, torch.tensor(1))
    yield "sum of rows", lambda: kernels.reduce.sum_to_size(x.view(1024, 1024), (1024,))
    sgd = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": True, "maximize": False}
    yield "SGD", lambda: kernels.optimizers.sgd_step([x], [x], [x], False, **sgd)
    adam = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}
    adam |= {"amsgrad": False, "maximize": False}
    yield "AdamW", lambda: kernels.optimizers.adam_step([x], [x], [x], [x], None, 1, **adam)
    yield "clipping", lambda: kernels.optimizers.clip_gradients([x], 1.0, x[0])


def innermost_loops(sass):
    """[the opcodes of a loop without a loop in it], a loop being what a branch goes back over."""
    line = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?(\w[\w.]*)(.*?);")
    code = [(int(at, 16), opcode, rest) for at, opcode, rest in line.findall(sass)]
    targets = [(at, re.search(r"0x([0-9a-f]+)", rest)) for at, opcode, rest in code if opcode.startswith("BRA")]
    loops = [(int(target[1], 16), at) for at, target in targets if target and int(target[1], 16) < at]
    inner = [(a, b) for a, b in loops if not any((a, b) != other and a <= other[0] <= b for other in loops)]
    return [[opcode.split(".")[0] for at, opcode, _ in code if a <= at <= b] for a, b in inner]


def resources(compiled):
    """What ptxas gave a kernel; for each loop of a float32 product the share of fma, and reads of what was spilled."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    products = [loop for loop in innermost_loops(text) if "LDS" in loop and any(o.startswith("FFMA") for o in loop)]
    shares = [sum(o.startswith("FFMA") for o in loop) / len(loop) for loop in products]
    reloads = sum(o == "LDL" for loop in products for o in loop)
    found = {key: int(number) for key, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    spilled = max(found["STACK"], found["LOCAL"])
    wide = compiled.asm["ptx"].count("global.v4.b32")  # loads and stores of 16 bytes
    return {"registers": found["REG"], "spilled": spilled, "shared": compiled.metadata.shared, "wide": wide} | {
        "shares": [round(share, 2) for share in shares],
        "reloads": reloads,
    }


def main(architecture, only):
    machine, kernels = machine_for(architecture)
    machine.compiled, report = [], {}
    for what, launch in launches(kernels):
        if only not in what:
            continue
        machine.compiled.clear()
        launch()
        report[what] = [{"kernel": name, **resources(compiled)} for name, compiled in machine.compiled]
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), "".join(sys.argv[2:]))
