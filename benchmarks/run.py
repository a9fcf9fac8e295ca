"""Side-by-side benchmark against stock PyTorch: `make bench`, options through ARGS.

Prints a table per group, shapes that lose first, and writes JSON and Markdown with the machine's description.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
from cases import GROUPS
from timing import compare
from tqdm import tqdm

import pytorch_ext
from pytorch_ext import native


def machine(threads):
    """What the figures were measured on."""
    model = next(
        (x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), platform.machine()
    )
    return {
        "processor": model,
        "threads": threads,
        "instruction set": native.library.capability() if native.library else "stock operators",
        "torch's": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "pytorch_ext": pytorch_ext.__version__,
    }


def measure(group, threads, pattern):
    torch.set_num_threads(threads)
    for name, providers in GROUPS[group]():
        if pattern in name:
            yield {"case": name, "threads": threads, "timings": {p: vars(t) for p, t in compare(providers).items()}}


def ratio(row):
    """How many times faster than the fastest stock provider."""
    times = {name: t["median"] for name, t in row["timings"].items()}
    return min(t for name, t in times.items() if name.startswith("stock")) / times["ours"]


def table(rows):
    """Markdown, losing rows first."""
    rows = sorted(rows, key=lambda row: ratio(row) >= 1)
    lines = [
        "| case | threads | ours, us | stock, us | ratio to the best stock | others, us |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = {name: t["median"] * 1e6 for name, t in row["timings"].items()}
        spread = row["timings"]["ours"]["spread"] * 1e6
        others = ", ".join(f"{name}: {t:.1f}" for name, t in times.items() if name not in ("ours", "stock"))
        lines.append(
            f"| {row['case']} | {row['threads']} | {times['ours']:.1f} ± {spread:.1f} | {times['stock']:.1f} "
            f"| {ratio(row):.2f} | {others} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", choices=GROUPS, action="append", help="only this group (may be repeated)")
    parser.add_argument("--threads", type=int, action="append", help="thread counts (default: 1 and 2)")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, help="a folder for results.json and results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    results, text = [], ""
    for group in options.group or GROUPS:
        rows = []
        for threads in options.threads or (1, 2):
            rows += tqdm(measure(group, threads, options.match), desc=f"{group}, {threads} threads", leave=False)
        results += rows
        text += f"\n## {group}\n\n{table(rows)}\n"
    heading = ", ".join(f"{key}: {value}" for key, value in machine(options.threads or [1, 2]).items())
    print(f"{heading}\n{text}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(options.threads or [1, 2]), "results": results}
        (options.output / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.output / "results.md").write_text(f"# Benchmark\n\n{heading}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
