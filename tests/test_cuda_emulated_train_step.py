"""TrainStep's own executor on an emulated device: the native library's objects with emulated launchers."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import needs_native
from emulator import executor, machines

FOLDER = Path(__file__).resolve().parent
pytestmark = [
    needs_native,
    pytest.mark.skipif(machines.compiler() is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(not executor.built_objects(), reason="there are no objects of a build with CUDA"),
]


@functools.cache
def library():
    folder = tempfile.TemporaryDirectory()
    return folder, executor.link(folder.name, machines.compiler())


# A file of tests, and which of them takes too long to be run in both directions.
FILES = {
    "test_train_step_on_device.py": "test_training_ends_in_the_recorded_weights[classifier]",
    "test_train_step_graphs.py": "test_training_by_graphs_ends_in_the_recorded_weights[classifier]",
    "test_train_step_one_launch.py": "test_training_ends_in_the_recorded_weights[classifier]",
}


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
@pytest.mark.parametrize("file", FILES)
def test_the_device_s_tests_pass_on_the_emulated_device(file, direction):
    program = [sys.executable, str(FOLDER / "emulator" / "executor.py"), str(library()[1]), direction]
    command = [*program, str(FOLDER / file), "-p", "no:cacheprovider", "-x"]
    command += ["--deselect", f"{FOLDER / file}::{FILES[file]}"] if direction == "backwards" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, env=os.environ)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
