"""Memory of a piece of work, alone in a process."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def in_new_process(work: Callable[..., int], *arguments: object) -> int:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def resident() -> int:
    """Highest resident memory of this process so far, in bytes (Linux); not of its parent, as
    ``resource.getrusage`` has it."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) * 1024
