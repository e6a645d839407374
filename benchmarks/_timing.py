"""Time several things in turns, so that a busy machine slows them all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

THREADS = 1


def wall_clock(device: str) -> Callable[[], float]:
    """Seconds; on a GPU, when all that was asked for is done."""
    if device == "cpu":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that each side takes, in at least 3 rounds and as many as start within ``seconds``.

    One round before them warms up and is not counted.
    """
    torch.set_num_threads(THREADS)
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    start, rounds = clock(), 0
    while rounds < 3 or clock() - start < seconds:
        for name, run in sides.items():
            begin = clock()
            run()
            times[name].append(clock() - begin)
        rounds += 1
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the rounds of how many times as long one side takes as the other."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def seconds(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each side."""
    return {name: statistics.median(values) for name, values in times.items()}
