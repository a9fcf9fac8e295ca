"""A converted model in several processes: data parallel, sharded and split over gloo; workers of a DataLoader."""

import copy
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accuracy import assert_same_bits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import pytorch_ext
from pytorch_ext import optim


def perceptron():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pytorch_ext.convert(model)
    return model


def batches():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 8, 6, generator=generator)


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def finish(state, folder, rank):
    """Ends the process when both are done. Its group is not destroyed: torch does that with the GIL held, and waits for
    ever for gloo's thread where that is about to ask for the GIL."""
    torch.save(state, f"{folder}/{rank}.pt")
    while not Path(folder, f"{1 - rank}.pt").exists():
        time.sleep(0.01)
    os._exit(0)


def one_of_two(rank, port, folder):
    """Trains on half of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = perceptron()
    parallel = DistributedDataParallel(model)
    optimizer = optim.SGD(parallel.parameters(), lr=0.5)
    for x in batches():
        step(parallel, optimizer, x.chunk(2)[rank])
    finish(model.state_dict(), folder, rank)


def trained_alone():
    model = perceptron()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    for x in batches():
        step(model, optimizer, x)
    return {name: p.detach() for name, p in model.named_parameters()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="there is no gloo")
def test_two_processes_end_in_the_weights_of_one(tmp_path):
    mp.start_processes(one_of_two, args=(free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, weight in trained_alone().items():
        assert_same_bits(states[0][name], states[1][name], name)
        torch.testing.assert_close(states[0][name], weight)


def sharded(rank, port, folder, kind):
    """Trains with FSDP2, or with the two products split over the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh, model = init_device_mesh("cpu", (2,)), perceptron()
    if kind == "fully_shard":
        fully_shard(model[0], mesh=mesh), fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x in batches():
        step(model, optimizer, x.chunk(2)[rank] if kind == "fully_shard" else x)
    state = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    finish({name: p.detach().clone() for name, p in state.items()}, folder, rank)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="there is no gloo")
@pytest.mark.parametrize("kind", ["fully_shard", "tensor_parallel"])
def test_sharded_models_end_in_the_weights_of_one_process(tmp_path, kind):
    mp.start_processes(sharded, args=(free_port(), str(tmp_path), kind), nprocs=2, start_method="fork")
    expected = trained_alone()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


class Features(Dataset):
    """Samples that a converted model computes in the worker."""

    def __init__(self):
        self.model = perceptron()

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(torch.full((1, 6), float(i)))[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader_compute_the_same_bits(context):
    data = Features()
    data.model(torch.ones(2, 6)).sum().backward()  # kernels and their threads are at work before a fork
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context)
    assert_same_bits(torch.cat(list(loader)), expected)


def test_a_model_in_shared_memory_is_trained_by_another_process():
    model = perceptron().share_memory()
    twin = copy.deepcopy(model)
    process = mp.get_context("fork").Process(target=train_once, args=(model,))
    process.start()
    process.join()
    assert process.exitcode == 0
    train_once(twin)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(p, q)


def train_once(model):
    torch.set_num_threads(1)
    step(model, optim.SGD(model.parameters(), lr=0.1), batches()[0])
