"""`auto` on a GPU: the table that results of a benchmark make, and what it does. Every figure here is made up."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pytorch_ext import backends, measured, native, triton_path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
gpu_table = pytest.importorskip("gpu_table")
GPU = "Made-up GPU 9000"
MACHINE = {"GPU": GPU, "torch": "1.0", "commit": "0123abc"}


def row(op, elements, native_seconds, triton_seconds, spread=0.0, dtype="float32"):
    timings = {"CUDA C++": native_seconds, "Triton": triton_seconds, "stock": 9.0}
    timings = {name: {"median": t, "spread": spread, "disturbed": 0} for name, t in timings.items()}
    return {
        "case": f"{op} {elements}",
        "threads": 1,
        "op": op,
        "dtype": dtype,
        "elements": elements,
        "timings": timings,
    }


ROWS = [
    row("softmax", 100, 1.0, 2.0),
    row("softmax", 1000, 2.0, 1.5),
    row("softmax", 10000, 3.0, 2.0),
    row("softmax", 10000, 3.0, 2.5),  # another case of the same size
    row("linear", 100, 2.0, 1.0),
    row("linear", 1000, 1.0, 2.0),  # larger and slower: what was smaller does not count
    row("matmul", 100, 2.0, 1.99, spread=0.1),  # no difference
    row("softmax", 100, 2.0, 1.0, dtype="bfloat16"),
    row("sgd_step", 50, 2.0, 1.0),
    {"case": "a case of the CPU's", "threads": 1, "timings": {"ours": {"median": 1.0}}},
]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder of tables, with that of the made-up GPU."""
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    measured.table_of.cache_clear()
    results = tmp_path / "results.json"
    others = tmp_path / "others.json"  # a benchmark in two parts
    for file, rows in ((results, ROWS[:3]), (others, ROWS[3:])):
        file.write_text(json.dumps({"machine": MACHINE, "results": rows}))
    files = [str(results), str(tmp_path / "of a group that did not come to one.json"), str(others)]
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", *files, "--folder", str(measured.FOLDER)])
    assert gpu_table.main() == 0
    yield measured.FOLDER
    measured.table_of.cache_clear()


def test_the_table_says_from_where_on_triton_was_faster_in_every_case(tables):
    assert measured.read_table(GPU) == {
        "softmax": {"float32": 1000, "bfloat16": 100},
        "sgd_step": {"float32": 50},
    }


def test_the_table_says_what_it_was_made_of(tables):
    (file,) = tables.iterdir()
    table = json.loads(file.read_text())
    assert file.name == "made-up-gpu-9000.json" and table["machine"] == MACHINE
    assert table["triton"] == triton_path.triton_version() and table["date"].startswith("20")
    assert len(table["seconds"]) == len(ROWS) - 1
    assert table["seconds"][0]["Triton"] == {"median": 2.0, "spread": 0.0}


def test_results_of_two_commits_make_no_table(tmp_path):
    files = [tmp_path / f"{i}.json" for i in range(2)]
    for file, commit in zip(files, ("0123abc", "4567def"), strict=True):
        file.write_text(json.dumps({"machine": MACHINE | {"commit": commit}, "results": ROWS}))
    with pytest.raises(ValueError, match="gpu_table: expected results of one commit, got 0123abc, 4567def"):
        gpu_table.read(files)


def test_nothing_measured_makes_no_table(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"machine": {"GPU": GPU}, "results": ROWS[-1:]}))
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", str(results), "--folder", str(tmp_path / "measured")])
    assert gpu_table.main() == 0 and "nothing to choose" in capsys.readouterr().out
    assert not (tmp_path / "measured").exists()


def test_another_gpu_and_a_damaged_table_leave_the_rule_without_a_table(tables):
    assert measured.read_table("Another GPU") == {}
    (file,) = tables.iterdir()
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.warns(UserWarning, match="made-up-gpu-9000.json is not used"):
            assert measured.read_table(GPU) == {}


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)


def on_device(count, dtype=torch.float32):
    return torch.zeros(count, dtype=dtype).as_subclass(OnDevice)


class Named:
    def __init__(self, name, covers=True):
        self.name, self.covers = name, covers

    def __getattr__(self, op):
        return lambda *arguments: self.name if self.covers else None


@pytest.fixture
def on_gpu(tables, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    monkeypatch.setattr(native, "record", {"cuda": "13.0"})
    monkeypatch.setattr(triton_path, "problem", lambda: None)
    known = {"stock": Named("stock"), "triton": Named("triton"), "native": Named("native")}
    monkeypatch.setattr(backends, "_BACKENDS", known)
    return known


def test_auto_chooses_by_the_table(on_gpu):
    name, kernels = backends.automatic()
    assert name == "native"
    chosen = {count: kernels.softmax(on_device(count), 1) for count in (10, 999, 1000, 10**5)}
    assert chosen == {10: "native", 999: "native", 1000: "triton", 10**5: "triton"}
    assert kernels.softmax(on_device(100, torch.bfloat16), 1) == "triton"
    assert kernels.softmax(on_device(10**5, torch.float64), 1) == "native"
    assert kernels.linear(on_device(10**5), None) == kernels.activation(on_device(10**5), "relu") == "native"
    assert kernels.softmax(torch.zeros(10**5), 1) == "native"
    params = [on_device(20), on_device(30)]
    assert kernels.sgd_step({"params": params}, {}) == "triton"
    assert kernels.sgd_step({"params": params[:1]}, {}) == kernels.adam_step({"params": params}, {}) == "native"
    assert kernels.clip_grad_norm([], 1.0, False) == kernels.clip_grad_norm(params, 1.0, False) == "native"


def test_what_triton_does_not_cover_takes_cuda_whatever_was_measured(on_gpu):
    on_gpu["triton"].covers = False
    _, kernels = backends.automatic()
    assert kernels.softmax(on_device(10**5), 1) == "native"


def test_without_a_table_cuda_goes_first(on_gpu, tables):
    (file,) = tables.iterdir()
    file.unlink()
    assert backends.automatic() == ("native", on_gpu["native"])


def test_tables_in_the_repository_say_where_they_come_from():
    """There is none until a card has been measured."""
    for file in (ROOT / "pytorch_ext" / "measured").glob("*.json"):
        table = json.loads(file.read_text())
        assert file.name == measured.file_name(table["machine"]["GPU"])
        assert table["machine"]["commit"] != "unknown" and table["machine"]["torch"]
        assert table["seconds"] and table["triton"]
