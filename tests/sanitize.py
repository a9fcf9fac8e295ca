"""Every op once on small inputs: what compute-sanitizer runs. `python tests/sanitize.py [device [op ...]]`"""

import sys

import op_cases
import torch


def main(device="cuda", *ops):
    for op in ops or op_cases.OPS:
        for dtype in (torch.float32, torch.bfloat16):
            count = len(op_cases.run(op, torch.device(device), dtype))
            print(f"{op} {dtype}: {count} cases")
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
