"""Real processes that work together through gloo."""

import os
import time
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

LIMIT = 300  # seconds; some 10 are needed on an idle machine

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this build"
)


def found_by_each(work, world, folder):
    """What ``work(rank, world)`` returns in each process; all of them are ended when one fails or
    time is up."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = work, world, str(folder)
    processes = start_processes(member, arguments, world, join=False, start_method="spawn")
    deadline = time.monotonic() + LIMIT
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def member(rank, work, world, folder):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    limit = timedelta(seconds=LIMIT / 2)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    torch.save(work(rank, world), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
