"""CPU results, large and small ones, lie in memory that is kept: it is reused, given back, and an ordinary tensor's."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import needs_native

import pytorch_ext.functional as F
from pytorch_ext import native

pytestmark = [needs_native, pytest.mark.skipif(sys.platform != "linux", reason="malloc's memory elsewhere")]
ROOT = Path(__file__).resolve().parent.parent
LARGE = (1024, 2048)  # 8 MB


@pytest.fixture(autouse=True)
def nothing_kept():
    native.library.free_kept_memory()
    yield
    native.library.free_kept_memory()


def test_memory_is_kept_for_the_next_result_of_about_that_size():
    x = torch.randn(LARGE)
    first = F.relu(x)
    place = first.data_ptr()
    assert place % 2**21 == 0  # whole huge pages
    second = F.relu(x)
    assert second.data_ptr() != place
    del first
    assert F.relu(x[:1000]).data_ptr() == place
    assert F.relu(torch.randn(8, 2048)).data_ptr() != place
    native.library.free_kept_memory()


def run(code, megabytes):
    """What the code prints, a list of numbers, in a process that keeps at most so much."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_EXT_KEEP_MB": megabytes}
    command = [sys.executable, "-c", "import torch, pytorch_ext.functional as F\nfrom pathlib import Path\n" + code]
    return [int(n) for n in subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split()]


def test_no_more_than_asked_for_is_kept():
    code = """
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
x = torch.randn(1024, 16384)  # 64 MB
F.relu(x[:1])
before = resident()
for _ in range(3): F.relu(x)
print(resident() - before)
"""
    assert run(code, "0")[0] < 2**23 < 2**25 < run(code, "100")[0] < 2**27


def test_kept_memory_beyond_64_mb_is_the_system_s_for_the_asking():
    code = """
def lazily_free(): return int(Path("/proc/self/smaps_rollup").read_text().split("LazyFree:")[1].split()[0]) // 1024
x = torch.randn(512, 16384)  # 32 MB
for count in (1, 2, 4, 5):
    results = [F.relu(x) for _ in range(count)]
    del results
    print(lazily_free())
"""
    if "LazyFree:" not in Path("/proc/self/smaps_rollup").read_text():
        pytest.skip("this system does not say what it may take")
    assert run(code, "256") == [0, 0, 64, 96]


def test_such_a_tensor_is_an_ordinary_one():
    x = torch.randn(LARGE, requires_grad=True)
    y = F.relu(x)
    assert torch.equal(pickle.loads(pickle.dumps(y.detach())), y)
    assert y.detach().clone().resize_(2 * LARGE[0], LARGE[1]).shape == (2048, 2048)
    z = F.relu(x.detach())
    values = z.clone()
    assert torch.equal(z.resize_(2 * LARGE[0], LARGE[1])[:1024], values)
    assert torch.equal(F.relu(x.detach()).share_memory_(), values)
    y.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())
    with torch.inference_mode():
        assert F.relu(x).is_inference()


def test_an_order_of_dimensions_is_kept():
    x = torch.randn(2048, 1024).t()
    assert F.relu(x).stride() == torch.relu(x).stride()
    assert F.relu(x[::2]).stride() == torch.relu(x[::2]).stride()


def test_memory_that_torch_fills_is_torch_s():
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(F.relu(torch.ones(LARGE)), torch.ones(LARGE))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_profiler_counts_it():
    x = torch.randn(LARGE)
    with torch.profiler.profile(profile_memory=True) as profile:
        F.relu(x)
    assert any(event.cpu_memory_usage >= x.nbytes for event in profile.key_averages())


def test_threads_share_what_is_kept():
    x, wrong = torch.randn(LARGE), []

    def work():
        expected = torch.relu(x)
        for _ in range(20):
            if not torch.equal(F.relu(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_small_results_lie_in_blocks_of_their_own_that_are_used_again():
    x = torch.randn(4, 3)
    kept = [F.relu(x) for _ in range(100)]  # more than a thread keeps
    assert len({y.data_ptr() for y in kept}) == 100
    assert all(y.data_ptr() % 64 == 0 and torch.equal(y, torch.relu(x)) for y in kept)
    place = kept.pop().data_ptr()
    assert F.relu(x).data_ptr() == place
    grown = kept.pop().resize_(1000, 1000).fill_(2)
    assert grown.sum() == 2_000_000
    assert torch.equal(F.relu(x).share_memory_(), torch.relu(x))


def test_small_results_are_freed_by_any_thread_and_after_their_own():
    x, results = torch.randn(4, 3), []

    def work():
        results.extend(F.relu(x) for _ in range(50))
        del results[:25]  # another thread's too

    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(results) == 100 and all(torch.equal(y, torch.relu(x)) for y in results)
    results.clear()
    assert len({F.relu(x).data_ptr() for _ in range(3)}) == 1
