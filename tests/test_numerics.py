"""Functions, activations, sums and products of the contract: bits of the specification on every instruction set."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from accuracy import assert_all_same_bits, assert_same_bits
from spec import activations, arithmetic, functions, optimizers, orders, softmax

from pytorch_ext import build, native
from pytorch_ext import functional as F

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["exp", "exp_nonpositive", "log", "log1p", "tanh", "sigmoid", "erf"]
needs_native = pytest.mark.skipif(native.library is None, reason=f"native library: {native.reason}")


def wide_inputs(count=40_000):
    """Any bit pattern, every exponent with the mantissas where something changes, all branch points, usual numbers."""
    random = np.random.default_rng(0)
    mantissas = np.r_[0, 1, 2, 0x400000, 0x7FFFFF, 0x3504F2, 0x3504F3, 0x3504F4, random.integers(0, 1 << 23, 8)]
    words = [random.integers(0, 2**32, count), ((np.arange(512) << 23)[:, None] | mantissas).ravel()]
    parts = [w.astype(np.uint32).view(np.float32) for w in words]
    for branch in (0, 0.55, 0.9, 4, 20, 10, 87, 88, 88.72284, 89, 103.97, 104, 1, 0.41421356, 0.29289322, 2**-26):
        around = np.float32(branch).view(np.int32) + np.arange(-100, 100)
        parts += [around.astype(np.int32).view(np.float32), -around.astype(np.int32).view(np.float32)]
    parts += [4 * random.standard_normal(count), random.uniform(-110, 95, count), [np.nan, np.inf, -np.inf, 0.0, -0.0]]
    return np.concatenate([np.asarray(p, np.float32) for p in parts])


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_function_bits_on_every_instruction_set(each_cpu, name):
    x = wide_inputs()
    expected = torch.from_numpy(getattr(functions, name)(x))
    lengths = (len(x), len(x) - 5, 7, 1, 0)
    apply = native.library.apply_function
    results = each_cpu(lambda: [apply(name, torch.from_numpy(x[:n])) for n in lengths])
    assert_all_same_bits(results)
    for n, ours in zip(lengths, next(iter(results.values())), strict=True):
        assert_same_bits(ours, expected[:n], name)


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_double_functions_are_libm_s(each_cpu, name):
    x, tiny = torch.from_numpy(wide_inputs(2000)).double(), torch.finfo(torch.float64).tiny
    expected = getattr(torch, {"exp_nonpositive": "exp"}.get(name, name))(x)
    for (result,) in each_cpu(lambda: [native.library.apply_function(name, x)]).values():
        torch.testing.assert_close(result, expected, rtol=1e-14, atol=tiny, equal_nan=True)


SPECIAL = {
    "exp": [(np.inf, np.inf), (-np.inf, 0), (0, 1), (-0.0, 1), (88.73, np.inf), (-104, 0), (np.nan, np.nan)],
    "exp_nonpositive": [(-np.inf, 0), (0, 1), (-87.01, 0), (np.nan, np.nan)],
    "log": [(0, -np.inf), (-0.0, -np.inf), (1, 0), (np.inf, np.inf), (-1, np.nan), (np.nan, np.nan)],
    "log1p": [(0, 0), (-0.0, -0.0), (-1, -np.inf), (np.inf, np.inf), (-1.5, np.nan), (1e-45, 1e-45), (np.nan, np.nan)],
    "tanh": [(0, 0), (-0.0, -0.0), (np.inf, 1), (-np.inf, -1), (1e-45, 1e-45), (np.nan, np.nan)],
    "sigmoid": [(0, 0.5), (np.inf, 1), (-np.inf, 0), (np.nan, np.nan)],
    "erf": [(0, 0), (-0.0, -0.0), (np.inf, 1), (-np.inf, -1), (np.nan, np.nan)],
}


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_special_values(each_cpu, name):
    x, expected = torch.tensor(SPECIAL[name], dtype=torch.float32).T.contiguous()
    for (result,) in each_cpu(lambda: [native.library.apply_function(name, x)]).values():
        assert_same_bits(result, expected)


@needs_native
def test_apply_function_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="apply_function: expected a function of the contract, got cosh"):
        native.library.apply_function("cosh", torch.ones(2))
    with pytest.raises(RuntimeError, match="apply_function: expected a contiguous float32 or float64 tensor"):
        native.library.apply_function("exp", torch.ones(2, dtype=torch.float16))


@needs_native
@pytest.mark.parametrize("name", activations.VALUE)
def test_activation_bits_on_every_instruction_set(each_cpu, name):
    x = wide_inputs(5000)
    x = x[: len(x) // 64 * 64]
    g = np.random.default_rng(1).permutation(x)
    saved = x  # any number may be saved: the gradient's formula does not ask where it came from
    one = torch.ones(1, 1)

    def run():
        columns = [torch.from_numpy(v).reshape(-1, 1) for v in (x, g, saved)]
        value, _ = torch.ops.pytorch_ext.linear_forward(columns[0], one, None, name)
        grad, _, _ = torch.ops.pytorch_ext.linear_backward(*columns[1:2], columns[0], one, columns[2], name, (1, 0, 0))
        return [value, grad]

    results = each_cpu(run)
    assert_all_same_bits(results)
    with np.errstate(all="ignore"):
        z = arithmetic.fma(x, np.float32(1), np.float32(0))
        slope = arithmetic.fma(activations.GRADIENT[name](g, saved), np.float32(1), np.float32(0))
        expected = [activations.VALUE[name](z), slope]
    for ours, wanted in zip(next(iter(results.values())), expected, strict=True):
        assert_same_bits(ours.reshape(-1), torch.from_numpy(np.asarray(wanted)), name)


@needs_native
def test_a_product_of_two_terms_is_an_exact_fma(each_cpu):
    a = wide_inputs(20_000)
    b, c = (np.random.default_rng(seed).permutation(a) for seed in (2, 3))
    half = len(a) // 2
    with np.errstate(all="ignore"):  # sums that cancel, but for a few last places
        nudged = -(a[:half] * b[:half])
    c[:half] = (nudged.view(np.int32) + np.random.default_rng(4).integers(-3, 4, half).astype(np.int32)).view(
        np.float32
    )
    left = torch.from_numpy(np.stack([c, a], 1)[:, None, :])
    right = torch.from_numpy(np.stack([np.ones_like(b), b], 1)[:, :, None])
    results = each_cpu(lambda: [F.matmul(left, right).reshape(-1)])
    assert_all_same_bits(results)
    expected = arithmetic.fma(a, b, arithmetic.fma(c, np.float32(1), np.float32(0)))
    assert_same_bits(next(iter(results.values()))[0], torch.from_numpy(expected))


@needs_native
@pytest.mark.parametrize("n", [40_000, 70_007])
def test_long_products_of_a_row_and_a_column_are_those_of_one_thread(each_cpu, n):
    x, y = torch.randn(2, n)
    x, y = x[None], y[:, None]
    results = each_cpu(lambda: [F.matmul(x, y)])
    results["specification"] = [torch.from_numpy(orders.product(x.numpy(), y.numpy()))]
    assert_all_same_bits(results)


@needs_native
@pytest.mark.parametrize("n", [40_000, 70_007])
def test_long_dot_products_are_those_of_one_thread(each_cpu, n):
    x, y = torch.randn(2, n)
    results = each_cpu(lambda: [F.matmul(x, y), F.matmul(x[::3], y[: (n + 2) // 3])])
    results["specification"] = [
        torch.from_numpy(np.asarray(orders.sum_row(a.numpy() * b.numpy())))
        for a, b in [(x, y), (x[::3], y[: (n + 2) // 3])]
    ]
    assert_all_same_bits(results)


@pytest.mark.parametrize("n", [0, 1, 5, 63, 64, 65, 1000, 4096, 4097, 8192, 20000, 300001])
def test_row_sums(each_cpu, n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    results = each_cpu(lambda: [native.library.sum_to_size(torch.from_numpy(x), ())])
    assert_all_same_bits(results)
    assert_same_bits(next(iter(results.values()))[0], torch.from_numpy(np.array(orders.sum_row(x))))


@needs_native
@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (1, 1), (300, 17), (4097, 5), (9000, 33)])
def test_column_sums(each_cpu, rows, columns):
    x = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    results = each_cpu(lambda: [native.library.sum_to_size(torch.from_numpy(x), (columns,))])
    assert_all_same_bits(results)
    assert_same_bits(next(iter(results.values()))[0], torch.from_numpy(orders.sum_columns(x)))


# ---- the self-test at import ----------------------------------------------------------------------------------------


def scrambled(first, count):
    return (np.arange(first, first + count, dtype=np.uint64) * 2654435761 & 0xFFFFFFFF).astype(np.uint32)


def numbers(first, *shape):
    values = (scrambled(first, np.prod(shape)) >> 16).astype(np.int32) - 32768
    return (values.astype(np.float32) * np.float32(2**-10)).reshape(shape)


def fnv(x):
    digest = 0xCBF29CE484222325
    for word in np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32).reshape(-1).view(np.uint32):
        digest = (digest ^ int(word if word & 0x7FFFFFFF <= 0x7F800000 else 0x7FC00000)) * 0x100000001B3 % 2**64
    return digest


def expected_hashes():
    words = np.concatenate([np.uint32(0x7F7FFFFE) + np.arange(8, dtype=np.uint32), scrambled(8, 992)])
    x = np.concatenate([numbers(1, 1000), words.view(np.float32)])
    hashes = {name: fnv(getattr(functions, name)(x)) for name in NAMES if name != "exp_nonpositive"}
    hashes["exp_nonpositive"] = fnv(functions.exp_nonpositive(np.where(x > 0, -x, x)))
    hashes["product"] = fnv(orders.product(numbers(1, 5, 300), numbers(5000, 300, 7)))
    hashes["sum"] = fnv(np.r_[orders.sum_row(numbers(1, 5000)), orders.sum_columns(numbers(1, 1000, 5))])
    by_row, logarithm = softmax.VALUE["softmax"], softmax.VALUE["log_softmax"]
    hashes["softmax"] = fnv(np.r_[by_row(numbers(1, 125, 40)).reshape(-1), logarithm(numbers(1, 1, 5000))[0]])
    hashes["norm"] = fnv(optimizers.clip_grad_norm([numbers(1, 4500), numbers(4501, 500)], 1.0))
    param, state = numbers(1, 77), {}
    for _ in range(3):
        sgd = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "nesterov": True, "weight_decay": 0.01}
        optimizers.sgd(param, numbers(1000, 77), state, **sgd)
    hashes["sgd"] = fnv(param)
    param, state = numbers(1, 77), {}
    adam = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.01, "amsgrad": True, "maximize": True}
    for _ in range(3):
        optimizers.adam(param, numbers(1000, 77), state, **adam)
    hashes["adam"] = fnv(param)
    return hashes


@needs_native
def test_the_self_test_s_constants_are_the_specification_s(each_cpu):
    expected = expected_hashes()
    for found in each_cpu(native.library.self_test_hashes).values():
        assert found == expected
    assert set(each_cpu(native.library.self_test).values()) == {""}


# ---- how the code is compiled ---------------------------------------------------------------------------------------


def test_nothing_enables_fast_math():
    wanted = re.compile(
        r"fast-math|Ofast|use_fast_math|funsafe|ffinite|fassociative|freciprocal|GCC optimize|fp_contract"
    )
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    sources += [ROOT / "setup.py", ROOT / "pytorch_ext" / "build.py"]
    found = [f"{p.name}: {line}" for p in sources for line in p.read_text().splitlines() if wanted.search(line)]
    assert all("#error" in line for line in found), found
    assert "-ffp-contract=off" in build.KERNEL_FLAGS and "-ffp-contract=off" in build.TORCH_FLAGS


CROSS = shutil.which("aarch64-linux-gnu-g++")


@pytest.mark.skipif(CROSS is None, reason="there is no aarch64-linux-gnu-g++")
@pytest.mark.parametrize("source", build.kernel_sources(ROOT / "csrc"), ids=lambda source: source.name)
def test_kernels_compile_for_neon(source, tmp_path):
    command = [CROSS, *build.KERNEL_FLAGS, "-fPIC", "-DPYTORCH_EXT_ISA=baseline", "-c", source, "-o", tmp_path / "x.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_functions_keep_the_bounds_that_their_comments_state(tmp_path):
    program = tmp_path / "scan"
    flags = ["-std=c++17", "-O3", "-march=" + "native", "-ffp-contract=off", "-fno-math-errno", "-fopenmp"]
    subprocess.run(["g++", *flags, ROOT / "tests" / "scan_functions.cpp", "-o", program], check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    worst = {name: float(ulp) for name, ulp in re.findall(r"^(\w+) +at most ([\d.]+) ulp", output, re.MULTILINE)}
    assert sorted(worst) == sorted(NAMES) and len(re.findall(r", 0 wrong", output)) == len(NAMES), output
    header = (ROOT / "csrc" / "numerics" / "functions.h").read_text()
    stated = re.findall(
        r"At most ([\d.]+)\s+(?://\s+)?ulp[^/]*?(?:\n//[^\n]*)*\ntemplate <class V>\nINLINE_HD V (\w+)\(", header
    )
    assert sorted(name for _, name in stated) == sorted(NAMES)
    assert {name: worst[name] for bound, name in stated if worst[name] > float(bound)} == {}
