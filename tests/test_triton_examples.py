"""Every documented model, trained by Triton's kernels in the interpreter, ends in the weights of the CPU library."""

import pytest
import test_examples
from conftest import needs_interpreter, needs_native

import pytorch_ext

pytestmark = [needs_native, needs_interpreter, pytest.mark.usefixtures("one_thread")]
ROWS = {row.name: row for row in test_examples.demo_rows.ROWS}
INTEGERS = {"matrix_product"}  # which stock multiplies
LARGE = {"gan", "transfer_learning"}  # a step takes the interpreter up to a second


def check(name, steps, launched):
    digests = []
    for backend in ("native", "triton"):
        with pytorch_ext.backend(backend):
            digests.append(test_examples.weights_or_figures(ROWS[name], steps))
    assert digests[0] == digests[1]
    trains = hasattr(test_examples.demo_run.load_script(name), "train")
    assert launched.total() >= (0 if name in INTEGERS else steps if trains else 1)


@pytest.mark.parametrize("name", ROWS)
def test_twenty_steps_end_in_the_cpu_s_weights(name, launched):
    check(name, 5 if name in LARGE else 20, launched)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LARGE))
def test_twenty_steps_of_the_larger_models_end_in_the_cpu_s_weights(name, launched):
    check(name, 20, launched)
