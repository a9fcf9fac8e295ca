"""Side-by-side benchmark against stock PyTorch: `make bench`, options through ARGS.

Prints the goals and a table per group, what loses first, and writes JSON, Markdown and figures with the machine's
description to benchmarks/results/<machine>/; the JSON after every case, so that nothing measured is lost. On a GPU what
raises is left out and named at the end; then the result is 1.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from cases import GROUPS
from goals import outcomes
from gpu_cases import GPU_GROUPS
from limits import arithmetic_speed, copy_speed, peak_memory
from timing import compare
from tqdm import tqdm

import pytorch_ext
from pytorch_ext import native

ROOT = Path(__file__).resolve().parent.parent
SHOWN_BYTES = 2**20  # a call's memory below this is the allocator's noise


def commit():
    """The commit that is measured, with a mark where files differ from it; outside of a repository what COMMIT says."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        done = ""
    return done or os.environ.get("COMMIT", "unknown")


def machine(threads, device):
    """What the figures were measured on."""
    if device == "cuda":
        return {
            "GPU": torch.cuda.get_device_name(),
            "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
            "copy, GB/s": round(copy_speed("cuda") / 1e9),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "pytorch_ext": pytorch_ext.__version__,
            "commit": commit(),
        }
    model = next(
        (x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), platform.machine()
    )
    return {
        "processor": model,
        "threads": threads,
        "copy, GB/s": [round(copy_speed("cpu", count) / 1e9, 1) for count in threads],
        "float32, GFLOP/s": [round((arithmetic_speed(count) or 0) / 1e9) for count in threads],
        "instruction set": native.library.capability() if native.library else "stock operators",
        "torch's": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "pytorch_ext": pytorch_ext.__version__,
        "commit": commit(),
    }


def measure(group, threads, patterns, device, ends):
    """A row for every case that begins before ``ends`` on the monotonic clock."""
    torch.set_num_threads(threads)
    cases = (GROUPS | GPU_GROUPS)[group]()
    while time.monotonic() < ends:
        with torch.device(device):  # for the tensors the case makes, not while it runs
            name, providers, cost = next(cases, (None, None, None))
        if name is None:
            return
        if any(pattern in name for pattern in patterns):
            failed = failures(providers) if device == "cuda" else {}
            providers = {p: function for p, function in providers.items() if p not in failed}
            timings = {p: vars(t) for p, t in compare(providers, device).items()}
            memory = {p: peak_memory(providers[p]) for p in ("ours", "stock")} if device == "cpu" else {}
            yield {"case": name, "threads": threads, "timings": timings, "memory": memory, "failed": failed, **cost}


def failures(providers):
    """{provider: its error} of those that raise: of what has never run on a GPU one must not hide the others."""
    found = {}
    for name, function in providers.items():
        try:
            with getattr(function, "context", contextlib.nullcontext)():
                function()
            torch.cuda.synchronize()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return found


def is_whole(row):
    """Whether ours stands beside stock."""
    return {"ours", "stock"} <= row["timings"].keys()


def share_of_limit(row, device):
    """What part of the machine's copy speed is reached, or of its arithmetic."""
    seconds, threads = row["timings"]["ours"]["median"], row["threads"]
    if "bytes" in row:
        return f"{row['bytes'] / seconds / copy_speed(device, threads):.0%} of copy"
    if "operations" not in row:
        return ""
    if device == "cuda":
        return f"{row['operations'] / seconds / 1e12:.1f} TFLOP/s"
    most = arithmetic_speed(threads)
    return f"{row['operations'] / seconds / most:.0%} of FLOP/s" if most else ""


def ratio(row, provider="ours"):
    """How many times faster than the fastest stock provider."""
    times = {name: t["median"] for name, t in row["timings"].items()}
    return min(t for name, t in times.items() if name.startswith("stock")) / times[provider]


def megabytes(row):
    """What a call adds to the process's memory, ours and stock."""
    found = [row["memory"].get(name) for name in ("ours", "stock")]
    if None in found or max(found) < SHOWN_BYTES:
        return ""
    return " / ".join(f"{bytes / 1e6:.0f}" for bytes in found)


def table(rows, device):
    """Markdown, losing rows first."""
    rows = sorted(rows, key=lambda row: ratio(row) >= 1)
    lines = [
        "| case | threads | ours, us | stock, us | ratio to the best stock | limit | MB | others, us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = {name: t["median"] * 1e6 for name, t in row["timings"].items()}
        spread = row["timings"]["ours"]["spread"] * 1e6
        others = ", ".join(f"{name}: {t:.1f}" for name, t in times.items() if name not in ("ours", "stock"))
        lines.append(
            f"| {row['case']} | {row['threads']} | {times['ours']:.1f} ± {spread:.1f} | {times['stock']:.1f} "
            f"| {ratio(row):.2f} | {share_of_limit(row, device)} | {megabytes(row)} | {others} |"
        )
    return "\n".join(lines)


def goals(rows):
    """Markdown, missed goals first."""
    found = sorted(outcomes(rows), key=lambda goal: goal[3] >= goal[4])
    lines = [
        f"| {'reached' if reached >= wanted else 'MISSED'} | {row['case']} | {row['threads']} | {provider} | {against} "
        f"| {reached:.2f} | {wanted} |"
        for row, provider, against, reached, wanted in found
    ]
    heading = ["| | case | threads | provider | against | ratio | goal |", "|---|---|---|---|---|---|---|"]
    return "\n".join(heading + lines) if lines else ""


def draw(rows, file):
    """The ratio of every row as a bar from 1, what loses on top."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = ("ours", "ours, TrainStep")
    bars = [(ratio(row, name), row, name) for row in rows for name in drawn if name in row["timings"]]
    bars.sort(key=lambda bar: -bar[0])
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(bars)), layout="constrained")
    labels = [f"{row['case']}, {row['threads']}t{name.removeprefix('ours')}" for _, row, name in bars]
    colours = ["tab:red" if value < 1 else "tab:blue" for value, *_ in bars]
    axes.barh(labels, [value - 1 for value, *_ in bars], left=1, color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_formatter("{x:g}x")
    axes.set_xlabel("times as fast as the fastest stock provider")
    axes.tick_params(which="both", labelsize=6)
    axes.margins(y=0.01)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def folder_of(description):
    """benchmarks/results/<machine>."""
    name = description.get("GPU") or f"{description['processor']} {description['instruction set']}"
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--group", choices=[*GROUPS, *GPU_GROUPS], action="append", help="only this group (may be repeated)"
    )
    parser.add_argument("--threads", type=int, action="append", help="thread counts (default: 1 and 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the tensors are")
    parser.add_argument("--match", action="append", help="only cases whose name contains this (may be repeated)")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<machine>")
    parser.add_argument("--without-gpu-groups", action="store_true", help="on a GPU too, only the groups of the CPU")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins after so many")
    options = parser.parse_args()
    torch.manual_seed(0)
    on_gpu = options.device == "cuda"
    threads_tried = options.threads or ([1] if on_gpu else [1, 2])
    description = machine(threads_tried, options.device)
    output = options.output or folder_of(description)
    output.mkdir(parents=True, exist_ok=True)
    results, text, ends = [], "", time.monotonic() + options.seconds
    of_gpu = GPU_GROUPS if on_gpu and not options.without_gpu_groups else {}
    for group in options.group or [*of_gpu, *GROUPS]:
        first = len(results)
        for threads in threads_tried:
            found = measure(group, threads, options.match or [""], options.device, ends)
            for row in tqdm(found, desc=f"{group}, {threads} threads", leave=False):
                results.append(row)
                report = json.dumps({"machine": description, "results": results}, indent=1)
                (output / "results.json").write_text(report + "\n")
        rows = list(filter(is_whole, results[first:]))
        if rows:
            text += f"\n## {group}\n\n{table(rows, options.device)}\n"
            draw(rows, output / f"{group.replace(' ', '-')}.png")
    heading = ", ".join(f"{key}: {value}" for key, value in description.items())
    if not on_gpu and (found := goals(results)):
        text = f"\n## Goals\n\n{found}\n{text}"
    failed = [f"{row['case']}: {name}: {error}" for row in results for name, error in row["failed"].items()]
    print(f"{heading}\n{text}\nin {output}", *failed, sep="\n")
    (output / "results.md").write_text(f"# Benchmark\n\n{heading}\n{text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
