"""Blocks of a cluster: on the emulator, which notices a barrier that is missing, and in the PTX interpreter."""

import ctypes

import numpy as np
import pytest
import torch
from ptx import interpreter
from ptx.memory import Fault
from ptx.parse import parse
from test_cuda_emulated import compiled_runner, pytestmark  # noqa: F401

THREADS = 40  # of a block: more than a warp, and no multiple of it


def emulated(size, fault=0, backwards=False):
    """What the two clusters of cluster_kernel write; the emulator's error where it ends with one."""
    runner, y = compiled_runner(torch.float32), (ctypes.c_int * (2 * size * THREADS))()
    runner.emulator_reverse(backwards)
    error = runner.cluster(size, fault, y)
    return runner.emulator_error().decode() if error else np.array(y).reshape(2, size, THREADS)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_blocks_of_a_cluster_read_each_other_s_shared_memory(size, backwards):
    ranks, threads = np.arange(size)[:, None], np.arange(THREADS)
    expected = 100 * (10 * ((ranks + 2) % size) + threads)
    assert (emulated(size, backwards=backwards) == expected).all()


@pytest.mark.parametrize("fault", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_a_missing_barrier_of_a_cluster_is_noticed(size, fault):
    found = [emulated(size, fault, backwards) for backwards in (False, True)]
    right = emulated(size)
    assert any(isinstance(f, str) or (f != right).any() for f in found)


@pytest.mark.parametrize(
    ("size", "fault", "message"),
    [
        (2, 5, "deadlock: 40 threads wait at __syncthreads, 0 for other lanes of their warp, 40 for other blocks"),
        (2, 6, "waiting at the cluster's barrier without an arrival"),
        (17, 0, "cannot be launched in clusters of 17"),
        (2, 4, "the shared memory of a block that has ended"),
    ],
)
def test_the_emulator_names_what_a_cluster_must_not_do(size, fault, message):
    assert any(message in str(emulated(size, fault, backwards)) for backwards in (False, True))


KERNEL = """
.extern .shared .align 16 .b8 dynamic[];
.visible .entry kernel(
	.param .u64 kernel_param_0
)
{
	.reg .pred %p<3>;
	.reg .b32 %r<12>;
	.reg .b64 %rd<12>;
	ld.param.u64 %rd1, [kernel_param_0];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %cluster_ctarank;
	mov.u32 %r3, %cluster_nctarank;
	mov.u32 %r4, %ctaid.x;
	mov.u64 %rd2, dynamic;
	mad.lo.s32 %r5, %r2, 10, %r1;
	shl.b32 %r6, %r1, 2;
	mov.u32 %r7, dynamic;
	add.s32 %r7, %r7, %r6;
	st.shared.u32 [%r7], %r5;
	add.s32 %r8, %r2, 1;
	rem.u32 %r8, %r8, %r3;
	BARRIER
	READ
	mad.lo.s32 %r10, %r4, 32, %r1;
	mul.wide.u32 %rd5, %r10, 4;
	add.s64 %rd6, %rd1, %rd5;
	st.global.u32 [%rd6], %r9;
	barrier.cluster.arrive.release.aligned;
	barrier.cluster.wait.acquire.aligned;
	ret;
}
"""
BARRIER = "barrier.cluster.arrive.release.aligned;\nbar.sync 0;\nbarrier.cluster.wait.acquire.aligned;"
READS = {
    "shared::cluster": "mapa.shared::cluster.u32 %r11, %r7, %r8;\nld.shared::cluster.u32 %r9, [%r11];",
    "generic": "cvt.u64.u32 %rd3, %r7;\ncvta.shared.u64 %rd4, %rd3;\nmapa.u64 %rd4, %rd4, %r8;\nld.u32 %r9, [%rd4];",
}


def interpreted(size, read, barrier=BARRIER):
    """What the kernel writes as two clusters of 32 threads a block."""
    array = np.zeros((2, size, 32), np.int32)
    arguments, regions = [array.ctypes.data.to_bytes(8, "little")], [(array.ctypes.data, array.reshape(-1).view("u1"))]
    kernel = parse(KERNEL.replace("BARRIER", barrier).replace("READ", read))["kernel"]
    interpreter.Launch(kernel, (2 * size, 1, 1), (32, 1, 1), 128, arguments, regions, None, size).run()
    return array


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_interpreter_knows_clusters(size, read):
    expected = 10 * ((np.arange(size)[:, None] + 1) % size) + np.arange(32)
    assert (interpreted(size, read) == expected).all()


def test_the_interpreter_refuses_a_wait_without_an_arrival_and_a_block_that_is_not_there():
    with pytest.raises(Fault, match=r"barrier.cluster.wait.*out of turn"):
        interpreted(2, READS["generic"], "barrier.cluster.wait.acquire.aligned;")
    with pytest.raises(Fault, match=r"barrier.cluster.arrive.*out of turn"):
        interpreted(2, READS["generic"], 2 * "barrier.cluster.arrive.release.aligned;\n")
    with pytest.raises(Fault, match="a block that the cluster does not have"):
        interpreted(2, READS["generic"].replace("%r8", "%r3"))
