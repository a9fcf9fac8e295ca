"""Side-by-side benchmark against stock PyTorch: `make bench`, options through ARGS.

Prints a table per group, shapes that lose first, and writes JSON and Markdown with the machine's description.
"""

import argparse
import functools
import json
import platform
import sys
from pathlib import Path

import torch
from cases import GROUPS
from gpu_cases import GPU_GROUPS
from timing import compare
from tqdm import tqdm

import pytorch_ext
from pytorch_ext import native


def machine(threads, device):
    """What the figures were measured on."""
    if device == "cuda":
        return {
            "GPU": torch.cuda.get_device_name(),
            "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
            "copy, GB/s": round(copy_speed() / 1e9),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "pytorch_ext": pytorch_ext.__version__,
        }
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


@functools.cache
def copy_speed():
    """Bytes read and written per second by the GPU's copy of half a gigabyte."""
    source = torch.randn(2**27, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / compare({"copy": lambda: target.copy_(source)}, "cuda")["copy"].median


def measure(group, threads, pattern, device):
    torch.set_num_threads(threads)
    cases = (GROUPS | GPU_GROUPS)[group]()
    while True:
        with torch.device(device):  # for the tensors the case makes, not while it runs
            name, providers, *cost = next(cases, (None, None))
        if name is None:
            return
        if pattern in name:
            timings = {p: vars(t) for p, t in compare(providers, device).items()}
            yield {"case": name, "threads": threads, "timings": timings, **(cost[0] if cost else {})}


def share_of_limit(row):
    """What part of the GPU's copy speed is reached, or operations per second."""
    seconds = row["timings"]["ours"]["median"]
    if "bytes" in row:
        return f"{row['bytes'] / seconds / copy_speed():.0%} of copy"
    return f"{row['operations'] / seconds / 1e12:.1f} TFLOP/s" if "operations" in row else ""


def ratio(row):
    """How many times faster than the fastest stock provider."""
    times = {name: t["median"] for name, t in row["timings"].items()}
    return min(t for name, t in times.items() if name.startswith("stock")) / times["ours"]


def table(rows):
    """Markdown, losing rows first."""
    rows = sorted(rows, key=lambda row: ratio(row) >= 1)
    lines = [
        "| case | threads | ours, us | stock, us | ratio to the best stock | limit | others, us |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = {name: t["median"] * 1e6 for name, t in row["timings"].items()}
        spread = row["timings"]["ours"]["spread"] * 1e6
        others = ", ".join(f"{name}: {t:.1f}" for name, t in times.items() if name not in ("ours", "stock"))
        lines.append(
            f"| {row['case']} | {row['threads']} | {times['ours']:.1f} ± {spread:.1f} | {times['stock']:.1f} "
            f"| {ratio(row):.2f} | {share_of_limit(row)} | {others} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--group", choices=[*GROUPS, *GPU_GROUPS], action="append", help="only this group (may be repeated)"
    )
    parser.add_argument("--threads", type=int, action="append", help="thread counts (default: 1 and 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the tensors are")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, help="a folder for results.json and results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    results, text = [], ""
    on_gpu = options.device == "cuda"
    threads_tried = options.threads or ([1] if on_gpu else [1, 2])
    for group in options.group or [*GROUPS, *(GPU_GROUPS if on_gpu else [])]:
        rows = []
        for threads in threads_tried:
            rows += tqdm(
                measure(group, threads, options.match, options.device), desc=f"{group}, {threads} threads", leave=False
            )
        results += rows
        text += f"\n## {group}\n\n{table(rows)}\n"
    heading = ", ".join(f"{key}: {value}" for key, value in machine(threads_tried, options.device).items())
    print(f"{heading}\n{text}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(threads_tried, options.device), "results": results}
        (options.output / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.output / "results.md").write_text(f"# Benchmark\n\n{heading}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
