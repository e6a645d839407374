"""Two real processes drop what one does that holds the whole batch, and get its gradients."""

import itertools
import os
import time
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from pilcro import draw_network
from pilcro.neighbours import SGDrop, drop_salient

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this build"
)

SHARDS = (3, 5)  # images of each process
LIMIT = 300  # seconds; some 10 are needed on an idle machine
STEPS = 3
CASES = list(itertools.product((None, 0.6), ("eval", "train")))  # ema, mode of the batch norm


def network(ema):
    def build():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            SGDrop(0.8, ema=ema),
            nn.Conv2d(4, 3, 3, stride=2),
            nn.Tanh(),
            SGDrop(0.7, ema=ema),
            nn.Flatten(),
            nn.Linear(18, 3),
        )

    return draw_network(build).double()


def whole_batch(number):
    random = torch.Generator().manual_seed(number)
    images = torch.randn(sum(SHARDS), 2, 8, 6, generator=random, dtype=torch.float64)
    return images, torch.randint(3, (len(images),), generator=random)


def train(net, model, mode, part=slice(None), gain=1.0):
    """A few steps; the thresholds after each of them, and the last gradients."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    thresholds = []
    for number in range(STEPS):
        images, labels = (whole[part] for whole in whole_batch(number))
        net[1].train(mode == "train")
        optimizer.zero_grad()
        with drop_salient(model, images, labels):
            loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
            (gain * loss).backward()
        optimizer.step()
        thresholds.append([drop.threshold.clone() for drop in (net[3], net[6]) if drop.ema])
    gradients = [p.grad.clone() for p in net.parameters()]
    return thresholds, gradients, {name: b.clone() for name, b in net.named_buffers()}


def work(rank, world, folder):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    limit = timedelta(seconds=LIMIT / 2)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    part = (slice(0, SHARDS[0]), slice(SHARDS[0], None))[rank]
    found = {}
    for ema, mode in CASES:
        net = network(ema)
        # The mean over processes of twice the sums is the sum.
        found[ema, mode] = train(net, DistributedDataParallel(net), mode, part, gain=2.0)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    processes = start_processes(work, (2, str(folder)), 2, join=False, start_method="spawn")
    deadline = time.monotonic() + LIMIT
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("ema", [None, 0.6])
def test_thresholds_and_gradients_are_those_of_one_process(ema, found):
    """With the running statistics: those of a batch are of each process's own."""
    net = network(ema)
    thresholds, gradients, _ = train(net, net, "eval")
    assert [threshold != 0 for threshold in thresholds[0]] == ([True] * 2 if ema else [])
    for result in found:
        torch.testing.assert_close(result[ema, "eval"][0], thresholds)
        torch.testing.assert_close(result[ema, "eval"][1], gradients)


@pytest.mark.parametrize("ema", [None, 0.6])
def test_batch_norm_moves_once_a_step(ema, found):
    one, two = (result[ema, "train"] for result in found)
    torch.testing.assert_close(one[:2], two[:2])
    for _, _, buffers in (one, two):
        assert buffers["1.num_batches_tracked"] == STEPS
        assert all(buffer.isfinite().all() for buffer in buffers.values())
