"""The examples give the right figures, agree with stock PyTorch, and the demo refuses a wrong figure."""

import gzip
import itertools
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_native

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

for package in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(package)

import demo  # noqa: E402
import demo_rows  # noqa: E402
import demo_run  # noqa: E402
import digits  # noqa: E402

import pytorch_ext  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SUPPORT = {"demo", "demo_figures", "demo_rows", "demo_run", "digits"}
# Epochs that suffice to compare the curves.
TRAININGS = {
    "neuron": 20,
    "mnist_mlp": 1,
    "image_network": 1,
    "simple_model": 20,
    "binary_classifier": 1,
    "linear_regression": 50,
    "mlp_regression": 50,
    "sklearn_regression": 3,
    "dropout_head": 2,
    "gan": 1,
    "transfer_learning": 1,
}


def available(path):
    reason = demo.why_unavailable(path)
    return pytest.param(path, marks=pytest.mark.skipif(reason is not None, reason=f"path {path}: {reason}"))


@pytest.fixture(params=[available(path) for path in demo.PATHS])
def device(request):
    """The device of a path, with that path's backend switched on."""
    backend, device = demo.PATHS[request.param]
    with pytorch_ext.backend(backend):
        yield device


def row_of(name):
    return next(row for row in demo_rows.ROWS if row.name == name)


def test_every_documented_model_has_a_script_and_a_row():
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE))
    assert documented == {path.stem for path in EXAMPLES.glob("*.py")} - SUPPORT
    assert documented == {row.name for row in demo_rows.ROWS}


@pytest.mark.parametrize("row", demo_rows.ROWS, ids=lambda row: row.title.strip())
def test_only_the_imports_name_this_package(row):
    source = (EXAMPLES / f"{row.name}.py").read_text()
    named = [line for line in source.splitlines() if "pytorch_ext" in line]
    assert named
    for line in named:
        assert any(line.startswith(ours) for ours in demo_run.STOCK_IMPORTS), line


@pytest.mark.parametrize("row", [row for row in demo_rows.ROWS if row.name not in TRAININGS], ids=lambda row: row.name)
def test_figures_are_right(row, device):
    assert demo_run.run_row(row, device=device).wrong == []


@pytest.mark.parametrize("name", TRAININGS)
def test_training_agrees_with_stock(name, device):
    result = demo_run.run_row(row_of(name), TRAININGS[name], device=device)
    assert result.wrong == []
    assert all(
        not torch.equal(result.initial[key], value.cpu()) for key, value in result.models[0].state_dict().items()
    )


@needs_native
def test_weights_of_train_step_that_differ_are_named(monkeypatch):
    load = demo_run.load_script

    def with_a_step_left_out(name, stock=False):
        script = load(name, stock)
        train = script.train_in_one_call

        def leave_out(model, data, epochs):
            losses = list(train(model, data, epochs - 1))
            yield from [*losses, losses[-1]]

        script.train_in_one_call = leave_out
        return script

    monkeypatch.setattr(demo_run, "load_script", with_a_step_left_out)
    result = demo_run.run_row(row_of("simple_model"), 3)
    assert len(result.wrong) == 1 and result.wrong[0].startswith("weights with TrainStep: expected")


def weights_or_figures(row, steps=30):
    """The digest of what our side of `row` ends with after so many steps, its data loaded anew."""
    torch.manual_seed(0)
    script = demo_run.load_script(row.name)
    if not hasattr(script, "train"):
        return demo_run.digest(script.compute(*(script.load_data() if hasattr(script, "load_data") else ())).values())
    model = script.make_model()
    model.load_state_dict(demo_run.initial_weights(model))
    for _ in itertools.islice(script.train(model, row.load_data(script), TRAININGS[row.name]), steps):
        pass
    return demo_run.digest(model.state_dict().values())


@pytest.mark.parametrize("row", demo_rows.ROWS, ids=lambda row: row.title.strip())
def test_every_instruction_set_and_thread_count_ends_in_one_hash(row, each_cpu):
    with pytorch_ext.backend("native"):
        digests = each_cpu(lambda: weights_or_figures(row))
    assert len(set(digests.values())) == 1, digests


def test_initial_weights_are_integer_arithmetic():
    model = torch.nn.Linear(4, 2)
    weights = demo_run.initial_weights(model)
    assert (weights["weight"].abs() <= 0.5).all() and (weights["bias"].abs() <= 0.5).all()
    assert (weights["weight"] * 2**24).frac().eq(0).all()
    assert weights["weight"].unique().numel() == 8


@pytest.mark.parametrize("name", ["chain_rule", "linear_regression"])
def test_script_runs_by_itself(name):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert {"chain_rule": "w.grad -2.0", "linear_regression": "y = "}[name] in finished.stdout


def run_demo(path, *arguments):
    where = "cpu" if demo.why_unavailable("cpu") is None else "stock"
    return demo.main(["--path", where, "--output", str(path), *arguments])


def test_demo_succeeds_with_right_figures(tmp_path, capsys):
    arguments = ["--model", "chain_rule", "--model", "matrix_product", "--model", "sklearn_regression", "--epochs", "2"]
    assert run_demo(tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "chain_rule" in printed and "wrong figure" not in printed
    assert {path.name for path in tmp_path.iterdir()} == {"loss_curves.png", "step_times.png", "fitted_line.png"}


def test_demo_names_a_wrong_gradient(tmp_path, capsys, monkeypatch):
    right = torch.nn.functional.mse_loss
    monkeypatch.setattr(pytorch_ext.functional, "mse_loss", lambda *tensors: 2 * right(*tensors))
    assert run_demo(tmp_path, "--model", "chain_rule") == 1
    assert "wrong figure: chain_rule: w.grad: expected -2, got -4.0" in capsys.readouterr().out


def test_demo_names_a_wrong_training(tmp_path, capsys, monkeypatch):
    right = pytorch_ext.optim.SGD
    monkeypatch.setattr(pytorch_ext.optim, "SGD", lambda parameters, lr: right(parameters, lr=lr * 1.01))
    assert run_demo(tmp_path, "--model", "linear_regression", "--epochs", "20") == 1
    assert "wrong figure: linear_regression: difference from stock: expected at most" in capsys.readouterr().out


def test_demo_names_a_loss_that_is_not_a_number(tmp_path, capsys, monkeypatch):
    right = pytorch_ext.functional.mse_loss
    monkeypatch.setattr(pytorch_ext.functional, "mse_loss", lambda *a, **b: right(*a, **b) * float("nan"))
    assert run_demo(tmp_path, "--model", "linear_regression", "--epochs", "2") == 1
    assert "got nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "resnet"], "--model: expected one of neuron, "),
        (["--epochs", "0"], "--epochs: expected a positive number, got 0"),
        (["--data", "/nowhere"], "--data: expected a folder, got /nowhere"),
        (["--data", str(EXAMPLES)], "expected MNIST's file train-images-idx3-ubyte"),
        (["--path", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_demo_refuses_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as refused:
        demo.main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the path cuda may be available here")
def test_demo_refuses_a_path_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as refused:
        demo.main(["--path", "cuda"])
    assert refused.value.code == 2
    assert "--path cuda: not available here: " in capsys.readouterr().err


def idx(*shape, content=None):
    """An idx file of unsigned bytes; zeros without `content`."""
    count = 1
    for size in shape:
        count *= size
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + (
        bytes(count) if content is None else content
    )


def write_mnist(folder, images=128):
    """A folder in MNIST's layout with scikit-learn's digits in it: training plain, test gzipped."""
    for part, (images_file, labels_file) in digits.MNIST_FILES.items():
        pixels, labels = digits.load_digits(part)
        pixels = (pixels[:images, 0] * 255).to(torch.uint8).numpy().tobytes()
        labels = labels[:images].to(torch.uint8).numpy().tobytes()
        for name, content in (
            (images_file, idx(images, 28, 28, content=pixels)),
            (labels_file, idx(images, content=labels)),
        ):
            if part == "test":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def test_demo_trains_on_the_users_mnist(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_mnist(data)
    assert run_demo(tmp_path / "output", "--model", "mnist_mlp", "--epochs", "2", "--data", str(data)) == 0
    images, labels = digits.load_digits("train", data)
    expected, expected_labels = digits.load_digits("train")
    assert (images - expected[:128]).abs().max() <= 1 / 255
    assert torch.equal(labels, expected_labels[:128])


@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw"])
def test_mnist_is_found_in_the_folder_or_where_torchvision_puts_it(tmp_path, layout):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    write_mnist(tmp_path / layout, images=4)
    for part in digits.MNIST_FILES:
        assert torch.equal(digits.load_digits(part, tmp_path)[1], digits.load_digits(part)[1][:4])


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train-images-idx3-ubyte", None, "expected MNIST's file train-images-idx3-ubyte"),
        ("train-images-idx3-ubyte", b"\x89PNG", "expected an idx file of unsigned bytes"),
        ("train-images-idx3-ubyte", idx(2, 28, 28)[:-1], "expected 1568 bytes for shape (2, 28, 28), got 1567"),
        ("train-images-idx3-ubyte", idx(2, 28, 28)[:8], "expected 3 dimensions, the file ends before them"),
        ("train-images-idx3-ubyte", idx(2, 8, 8), "expected images of shape (N, 28, 28), got (2, 8, 8)"),
        ("train-labels-idx1-ubyte", idx(5), "expected 128 labels, one per image, got shape (5,)"),
        ("train-labels-idx1-ubyte", idx(128, content=bytes([10] * 128)), "expected labels 0 to 9, got 10"),
        ("t10k-images-idx3-ubyte.gz", b"plain", "expected a gzip file"),
    ],
)
def test_a_broken_mnist_file_is_named(tmp_path, name, content, message):
    write_mnist(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError)) as refused:
        digits.load_digits("test" if name.startswith("t10k") else "train", tmp_path)
    assert message in str(refused.value)
    assert name.removesuffix(".gz") in str(refused.value)


def test_enlarged_digits_keep_their_range_and_mean():
    images, labels = digits.load_digits("test")
    assert images.shape == (360, 1, 28, 28) and labels.shape == (360,)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    small, _ = digits.small_digits("test")
    expected = torch.nn.functional.interpolate(torch.from_numpy(small).float()[:, None] / 16, (28, 28), mode="bilinear")
    assert torch.allclose(images, expected, atol=1e-6)
