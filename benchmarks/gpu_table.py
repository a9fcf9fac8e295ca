"""Writes the table by which `auto` chooses between CUDA C++ and Triton, from the results.json of benchmarks of one GPU.

`make gpu` does so after its benchmarks. The table goes to pytorch_ext/measured/<gpu>.json, to be looked at and then
committed; pytorch_ext/measured.py reads it.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

from pytorch_ext import measured, triton_path

NATIVE, TRITON = "CUDA C++", "Triton"


def is_faster(row):
    """Whether Triton took less time, by more than both spread."""
    native, triton = row["timings"][NATIVE], row["timings"][TRITON]
    return triton["median"] + triton["spread"] < native["median"] - native["spread"]


def thresholds(rows):
    """{op: {dtype: elements}}: from so many elements on Triton was faster in every case."""
    found = {}
    for op, dtype in sorted({(row["op"], row["dtype"]) for row in rows}):
        cases = [row for row in rows if (row["op"], row["dtype"]) == (op, dtype)]
        slower = [row["elements"] for row in cases if not is_faster(row)]
        faster = [row["elements"] for row in cases if row["elements"] > max(slower, default=0)]
        if faster:
            found.setdefault(op, {})[dtype] = min(faster)
    return found


def table(reports):
    """The table, with what it was made of."""
    rows = [row for report in reports for row in report["results"]]
    rows = [row for row in rows if "op" in row and {NATIVE, TRITON} <= row["timings"].keys()]
    cases = [
        {key: row[key] for key in ("case", "op", "dtype", "elements")}
        | {name: {key: row["timings"][name][key] for key in ("median", "spread")} for name in (NATIVE, TRITON)}
        for row in rows
    ]
    return {
        "machine": reports[0]["machine"],
        "triton": triton_path.triton_version(),
        "date": datetime.date.today().isoformat(),
        "triton_from": thresholds(rows),
        "seconds": cases,
    }


def read(files):
    """The reports of the benchmarks that have come to one, all of one GPU, package and commit."""
    reports = [json.loads(file.read_text()) for file in files if file.is_file()]
    for key in ("GPU", "torch", "commit"):
        found = {report["machine"].get(key) for report in reports}
        if len(found) > 1:
            raise ValueError(f"gpu_table: expected results of one {key}, got {', '.join(sorted(map(str, found)))}")
    return reports


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="results.json of benchmarks/run.py --device cuda")
    parser.add_argument("--folder", type=Path, default=measured.FOLDER, help="instead of pytorch_ext/measured")
    options = parser.parse_args()
    reports = read(options.results)
    found = table(reports) if reports else {"seconds": []}
    if not found["seconds"]:
        print(f"no case has {NATIVE} beside {TRITON}: there is nothing to choose between")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / measured.file_name(found["machine"]["GPU"])
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{file}: {json.dumps(found['triton_from'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
