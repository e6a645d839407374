"""Results as JSON Lines: one file an experiment in ``data/results``, one line a run.

Files are only ever added to. A line is written at once and flushed to the disk, so that a killed
run costs at most the line it was writing; whatever came before stays. To get a table,
``pandas.json_normalize(read(path))``.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path

import torch
from tqdm import tqdm

from pilcro.second_moments import UnsupportedOperation

KEYS = (
    "experiment",  # the question, "cost of the closed form", say
    "dataset",  # what the images were
    "network",
    "method",
    "seed",
    "config",  # everything else that was chosen
    "metrics",  # what was found
    "provenance",  # what provenance() returns
)
VERSIONS = ("pilcro", "torch", "torchvision")
SOURCE = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """Where the results lie that ship with pilcro: ``data/results`` in a checkout.

    >>> folder().name
    'results'
    """
    from pilcro.data.loaders import shipped_folder

    return shipped_folder() / "results"


def append(path: str | os.PathLike, record: dict) -> None:
    """Add one record as the last line; safe for many processes and against being killed.

    A torn last line, left by a process that was killed while it wrote, is removed with a warning.

    Raises:
        ValueError: a key is missing, or a number is NaN or infinite (write None).
        TypeError: something in the record is not JSON.
        OSError: the line could not be written whole, on a full disk, say.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "runs.jsonl")
    >>> append(path, dict.fromkeys(KEYS) | {"metrics": {"accuracy": 0.7}})
    >>> read(path)[0]["metrics"]
    {'accuracy': 0.7}
    """
    if missing := [key for key in KEYS if key not in record]:
        raise ValueError(f"record lacks {', '.join(missing)}")
    try:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise ValueError(f"{error}; write None for a number that is not finite") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path), open(path, "ab+", buffering=0) as file:
        line = mend(file, path) + line
        if file.write(line) < len(line):
            raise OSError(f"{path}: only a part of the line could be written; is the disk full?")
        os.fsync(file.fileno())


def locked(path: Path):
    try:
        from filelock import FileLock
    except ImportError as error:
        raise ImportError(
            "writing results needs filelock: pip install 'pilcro[experiments]'"
        ) from error
    return FileLock(path.with_name(f".{path.name}.lock"))


def mend(file: FileIO, path: Path) -> bytes:
    """Remove a torn last line, or return the end of line that a whole one lacks."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read() in (b"", b"\n"):
        return b""
    file.seek(0)
    whole, newline, tail = file.readall().rpartition(b"\n")
    if is_json(tail):
        return b"\n"
    warnings.warn(
        f"{path}: removed a torn last line of {len(tail)} bytes; its writer was interrupted",
        stacklevel=3,
    )
    file.truncate(len(whole + newline))
    return b""


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read(path: str | os.PathLike) -> list[dict]:
    """Every record of a file, in the order in which they were written.

    A torn last line is left out, with a warning: its writer was killed or is still at it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and the line that is corrupt.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "runs.jsonl")
    >>> path.touch()
    >>> read(path)
    []
    """
    whole, _, tail = Path(path).read_bytes().rpartition(b"\n")
    records = [record(line, path, n) for n, line in enumerate(whole.split(b"\n"), 1) if whole]
    if tail and is_json(tail):
        records.append(record(tail, path, len(records) + 1))
    elif tail:
        warnings.warn(f"{path}: left out a torn last line of {len(tail)} bytes", stacklevel=2)
    return records


def record(line: bytes, path: str | os.PathLike, number: int) -> dict:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
    missing = KEYS if not isinstance(found, dict) else [key for key in KEYS if key not in found]
    if missing:
        raise ValueError(f"{path}, line {number}, lacks {', '.join(missing)}")
    return found


def complete(
    path: str | os.PathLike | None,
    wanted: Iterable[tuple],
    compute: Callable[..., dict],
    entry_of: Callable[[dict], tuple],
    label: str,
) -> list[dict]:
    """Compute the records that a file lacks, one by one, and append each as soon as it is there.

    An entry whose model has no rule for the closed form is named and left out.

    Args:
        path: of the file, which need not exist; None stores nothing.
        wanted: entries, each a tuple of arguments for ``compute``.
        compute: makes the record of one entry.
        entry_of: the entry that a record is of.
        label: how the progress bar writes an entry, ``"{} at {}"``, say.

    Returns:
        The records of the file, and the new ones behind them.

    >>> made = complete(None, [(2,)], lambda n: {"seed": n}, lambda run: (run["seed"],), "seed {}")
    >>> made
    [{'seed': 2}]
    """
    runs = read(path) if path is not None and Path(path).exists() else []
    there = {entry_of(run) for run in runs}
    name = None if path is None else Path(path).stem
    bar = tqdm([entry for entry in wanted if entry not in there], name)
    for entry in bar:
        bar.set_postfix_str(label.format(*entry))
        try:
            runs.append(compute(*entry))
        except UnsupportedOperation as error:
            bar.write(f"{entry[0]}: {error}")
            continue
        if path is not None:
            append(path, runs[-1])
    return runs


def provenance() -> dict[str, str | int | bool | None]:
    """Where a result comes from: versions, machine, code, command, time.

    ``revision`` and ``modified`` (whether the code differs from that revision) are None outside
    a git checkout of pilcro.

    >>> sorted(provenance())[:5]
    ['command', 'cpu', 'instructions', 'modified', 'pilcro']
    """
    tracked = git("ls-files", "pilcro/__init__.py")
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in VERSIONS},
        "cpu": cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "revision": git("rev-parse", "HEAD") if tracked else None,
        "modified": bool(git("status", "--porcelain", "pilcro", "benchmarks")) if tracked else None,
        "command": command(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def command() -> str:
    """That of this process, as it was given."""
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*command: str) -> str | None:
    """What git says in the folder that pilcro was imported from; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", SOURCE, *command], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu() -> str:
    """The processor's name; ``platform.processor`` does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, (*names, platform.processor(), platform.machine())))
