"""A low-rank locally connected layer costs little more than one convolution with rank * out
channels, on one thread; its memory grows linearly with the rank.

Both sides are timed in turns, forward alone and with the backward pass from a gradient that is
given, in seconds of the processor: others may be busy with something else. The floor of the mixing
is a sum over the banks, which reads each of their numbers once, too, and in the backward pass
writes as many. In front of a first layer of few channels the convolution does so little that this
floor is above the target. Peak memory of forward and backward is that of a fresh process.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pandas
import torch
import tyro
from _timing import in_turns, ratio, seconds
from penalty_cost import resident
from torch import Tensor, nn

from pilcro.neighbours import LocallyConnected2d, LowRankLocallyConnected2d

TARGET = 1.3
RANKS = (1, 2, 4, 8)
SIDES = ("convolution", "floor", "low rank")


def main(
    channels: tuple[int, ...] = (64, 3), filters: int = 64, size: int = 26, batch: int = 16
) -> None:
    """Measure, and print a table of times, ratios and memory.

    Args:
        channels: of the images; one part of the table each.
        filters: output channels.
        size: pixels a side of the output, behind 3x3 kernels without padding.
        batch: images.
    """
    rows = [row(before, filters, size, batch, rank) for before in channels for rank in RANKS]
    print(f"Times over those of a convolution with rank * {filters} channels (target <= {TARGET})")
    print(pandas.DataFrame(rows).to_string(index=False))


def row(channels: int, filters: int, size: int, batch: int, rank: int) -> dict:
    geometry = (channels, filters, size, batch, rank)
    steps = {
        train: in_turns(
            {side: step(side, *geometry, train) for side in SIDES}, clock=time.process_time
        )
        for train in (False, True)
    }
    memory = {side: peak_memory(side, *geometry) for side in ("convolution", "low rank", "local")}
    found = {"channels": channels, "rank": rank}
    for train, name in ((False, "forward"), (True, "backward too")):
        found[f"{name}, ms"] = round(seconds(steps[train])["low rank"] * 1e3, 1)
        found[name] = round(ratio(steps[train], "low rank", "convolution"), 2)
        found[f"{name}, floor"] = round(ratio(steps[train], "floor", "convolution"), 2)
    for side, used in memory.items():
        found[f"{side}, MiB"] = round(used / 2**20)
    return found


def step(
    side: str, channels: int, filters: int, size: int, batch: int, rank: int, train: bool
) -> Callable[[], Tensor]:
    """One pass through a layer."""
    layer = build(side, channels, filters, size, rank)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, size + 2, size + 2, generator=random)
    images.requires_grad_(channels > 3)  # in front of the first layer nobody wants it

    def forward() -> Tensor:
        out = layer(images)
        return out.unflatten(1, (rank, filters)).sum(1) if side == "floor" else out

    with torch.no_grad():
        gradient = torch.randn(forward().shape, generator=random)

    def run() -> Tensor:
        with torch.set_grad_enabled(train):
            out = forward()
            if train:
                out.backward(gradient)
        return out

    return run


def build(side: str, channels: int, filters: int, size: int, rank: int) -> nn.Module:
    if side == "low rank":
        return LowRankLocallyConnected2d(channels, filters, 3, size, rank, bias=False)
    if side == "local":
        return LocallyConnected2d(channels, filters, 3, size, bias=False)
    return nn.Conv2d(channels, rank * filters, 3, bias=False)


def peak_memory(side: str, *geometry: int) -> int:
    """Bytes that two passes need at most, weights and all, in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_memory_here, side, *geometry).result()


def peak_memory_here(side: str, *geometry: int) -> int:
    torch.set_num_threads(1)
    before = resident()
    run = step(side, *geometry, True)
    run()
    run()
    return resident() - before


if __name__ == "__main__":
    tyro.cli(main)
