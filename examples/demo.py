"""Trains every model of docs/models.md beside stock PyTorch and says, in one table, how the two compare.

Both sides run the same script, one of them with its imports changed back to torch's, from the same initial weights and
over the same batches. Exit status 1 means that a figure is wrong; each one is named below the table.
"""

import argparse
import sys
from pathlib import Path

try:
    import demo_figures
    import sklearn  # noqa: F401
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    sys.exit(f"demo: expected the package {error.name}: pip install matplotlib rich scikit-learn")

import digits
import torch
from demo_rows import ROWS
from demo_run import run_row

import pytorch_ext

# What `--path` takes: the backend of pytorch_ext, and the device that models and data are on.
PATHS = {"cpu": ("native", "cpu"), "cuda": ("native", "cuda"), "triton": ("triton", "cuda"), "stock": ("stock", "cpu")}
TABLE_WIDTH = 170  # columns, where the output is no terminal


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="ID", help="only this row (may be repeated)")
    parser.add_argument("--path", choices=PATHS, default="cpu", help="where our side runs (default: cpu)")
    parser.add_argument("--epochs", type=int, help="epochs of every training, instead of the scripts' own")
    parser.add_argument("--threads", type=int, help="CPU threads of both sides")
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's idx files (.gz or not), for the digit models")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="folder of the figures")
    options = parser.parse_args(arguments)
    known = [row.name for row in ROWS]
    for name in options.model or []:
        if name not in known:
            parser.error(f"--model: expected one of {', '.join(known)}, got {name}")
    for name in ("epochs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: expected a positive number, got {value}")
    if options.data is not None:
        if not options.data.is_dir():
            parser.error(f"--data: expected a folder, got {options.data}")
        try:
            for part in digits.MNIST_FILES:
                digits.load_digits(part, options.data)
        except (FileNotFoundError, ValueError) as error:
            parser.error(f"--data: {error}")
    reason = why_unavailable(options.path)
    if reason:
        parser.error(f"--path {options.path}: not available here: {reason}")
    return options


def why_unavailable(path):
    """The reason why `path` cannot run on this machine, or None."""
    backend, device = PATHS[path]
    if backend not in pytorch_ext.available_backends():
        return f"this installation has no backend {backend!r}; `python -m pytorch_ext doctor` tells why"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def run_rows(rows, options, console):
    """One Result per row of `rows`, in their order, with a progress bar for each."""
    backend, device = PATHS[options.path]
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with pytorch_ext.backend(backend), Progress(*columns, console=console) as progress:
        for row in rows:
            bar = progress.add_task(row.title, total=1)

            def report(done, total, bar=bar):
                progress.update(bar, completed=done, total=total)

            results.append(run_row(row, options.epochs, options.data, device, report))
    return results


def significant(value):
    return "" if value is None else f"{value:.4g}"


def table_of(results, heading):
    table = Table(title=heading)
    table.add_column("model", no_wrap=True)
    names = (
        "loss ours",
        "loss stock",
        "difference",
        "bound",
        "accuracy",
        "step ours",
        "step stock",
        "faster",
        "TrainStep",
        "faster",
        "weights",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        ours, stock, one_call = result.step_times
        table.add_row(
            result.row.title,
            *map(significant, result.final_losses),
            f"{result.difference:.1e}",
            f"{result.row.bound:.0e}",
            "" if result.accuracy is None else f"{result.accuracy:.1%}",
            f"{ours:.1f} us",
            f"{stock:.1f} us",
            f"{stock / ours:.2f}x",
            "" if one_call is None else f"{one_call:.1f} us",
            "" if one_call is None else f"{stock / one_call:.0f}x",
            result.digest,
            style="red" if result.wrong else None,
        )
    return table


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    rows = [row for row in ROWS if not options.model or row.name in options.model]
    results = run_rows(rows, options, console)
    heading = f"path {options.path}, {torch.get_num_threads()} threads, beside torch {torch.__version__}"
    console.print(table_of(results, heading))
    console.print("difference: largest of the loss curve, or of the figures, relative to stock PyTorch's.")
    options.output.mkdir(parents=True, exist_ok=True)
    written = demo_figures.draw(results, options.output)
    console.print(f"{len(written)} figures in {options.output}: {', '.join(path.name for path in written)}")
    wrong = [f"{result.row.title}: {message}" for result in results for message in result.wrong]
    for message in wrong:
        console.print(f"wrong figure: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
