"""Every op once on small inputs: what compute-sanitizer runs. `python tests/sanitize.py [device [op ...]]`"""

import sys

import op_cases
import torch

from pytorch_ext import TrainStep, backends


def train(device):
    """Steps as one launch, of one block and of as many as the work is worth, and as graphs."""
    for sizes, batch, blocks in (((5, 6, 3), 7, 0), ((300, 40, 5), 80, 0), ((300, 40, 5), 80, -1)):
        model = torch.nn.Sequential(torch.nn.Linear(*sizes[:2]), torch.nn.GELU(), torch.nn.Linear(*sizes[1:])).to(
            device
        )
        step = TrainStep(model, torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
        step._native.exact_blocks = blocks
        for _ in range(3):
            step(torch.randn(batch, sizes[0], device=device), torch.randint(3, (batch,), device=device))
        print(f"TrainStep {sizes}: {step.path}")


def main(device="cuda", *ops):
    for op in ops or op_cases.OPS:
        for dtype in (torch.float32, torch.bfloat16):
            count = len(op_cases.run(op, torch.device(device), dtype))
            print(f"{op} {dtype}: {count} cases")
    if not ops and backends.choice.name != "triton":  # which has no steps in one launch
        train(torch.device(device))
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
