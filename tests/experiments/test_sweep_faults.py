"""Sweeps whose processes are killed, whose disk is full, that meet one another: what was finished
stays, nothing is stored twice, and one line says what happened."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch

from pilcro.experiments import results
from pilcro.experiments.config import Run
from pilcro.experiments.train import train

HELD_UP = Path(__file__).with_name("held_up.py")
LIMIT = 300  # seconds that anything may take, on a busy machine
RUNS = [Run(images=100, epochs=3, batch=20, seed=seed) for seed in range(3)]
BARS = re.compile(r"(run/s|s/run)[],]")
NAMED = Path("results", "three.jsonl")  # as messages name it
GOES_ON = "and the same command goes on from there"


@pytest.fixture
def start(tmp_path):
    """Start programs; what is left of them and their workers is killed afterwards."""
    started = []

    def start(*command, **environment):
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=tmp_path,
            env=os.environ | {"FAULTS": str(tmp_path), "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def sweep(start):
    """Start a sweep of three runs, one after another, or of another experiment."""

    def sweep(name="three", *more, workers=1, **environment):
        where = () if "--scheduler" in more else ("--workers", workers)
        methods = ("--methods", "none") if name == "three" else ()
        return start(HELD_UP, "sweep", name, *methods, *where, *more, **environment)

    return sweep


def finish(process, code=0):
    """The lines that a program says on stderr, without the bars."""
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == code, errors
    return [s for line in errors.splitlines() if (s := line.strip()) and not BARS.search(s)]


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def hold(folder, run, epoch):
    (folder / f"hold-{run.key}-{epoch}").touch()


def held(folder, run):
    """Wait until a run is held up; returns the number of the process that it is in."""
    path = folder / f"held-{run.key}"
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def release(folder):
    for path in folder.glob("hold-*"):
        path.unlink()


def started(folder):
    return (folder / "started").read_text().split()


def of_group(process):
    """The processes that a program has started, and itself; a zombie has ended."""
    found = []
    for other in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
    return found


def path_of(folder, name="three"):
    return folder / "results" / f"{name}.jsonl"


def lines(folder):
    path = path_of(folder)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoint(folder, run):
    return path_of(folder).with_suffix(".checkpoints") / f"{run.key}.pt"


def timings(folder, run):
    """Of the epochs in a checkpoint: no other start of the run has the same."""
    return torch.load(checkpoint(folder, run), weights_only=True)["curves"]["seconds"]


def numbers(record):
    """All of a record that does not depend on when and where the run was made."""
    kept = {
        k: v
        for k, v in record.items()
        if k not in ("experiment", "method", "provenance", "padding")
    }
    timed = ("seconds", "processor_seconds")
    return kept | {"curves": {k: v for k, v in record["curves"].items() if k not in timed}}


@cache
def undisturbed(run):
    return numbers(train(run))


def check_complete(folder, *resumed):
    """Each run is stored once, with the numbers that it has undisturbed; those that are given with
    the times of their first epochs went on from there. Nothing else is left."""
    records = {record["seed"]: record for record in results.read(path_of(folder))}
    assert lines(folder) == len(records) == len(RUNS)
    for run in RUNS:
        assert numbers(records[run.seed]) == undisturbed(run)
    for run, times in resumed:
        assert records[run.seed]["curves"]["seconds"][: len(times)] == times
    left = {path.name for path in path_of(folder).parent.iterdir()}
    assert left == {"three.jsonl", ".three.jsonl.lock", ".three.jsonl.sweep.lock"}


def test_a_killed_worker(sweep, tmp_path):
    hold(tmp_path, RUNS[0], 2)
    process = sweep()
    worker = held(tmp_path, RUNS[0])
    times = timings(tmp_path, RUNS[0])
    assert len(times) == 2
    os.kill(worker, signal.SIGKILL)
    release(tmp_path)
    assert finish(process) == []
    check_complete(tmp_path, (RUNS[0], times))
    assert started(tmp_path) == [RUNS[i].key for i in (0, 0, 1, 2)]
    wait_until(lambda: of_group(process) == [])


def test_a_run_that_kills_its_workers(sweep, tmp_path):
    """It is given up, and takes no other with it."""
    murderer = tmp_path / f"kill-{RUNS[0].key}"
    murderer.touch()
    process = sweep()
    [said] = finish(process, code=1)
    assert said.startswith("pilcro: given up:")
    assert RUNS[0].key in said
    assert RUNS[1].key not in said
    assert f"2 of 3 runs are stored, {GOES_ON}" in said
    wait_until(lambda: of_group(process) == [])
    murderer.unlink()
    assert finish(sweep()) == []
    check_complete(tmp_path)


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def test_a_killed_scheduler(start, sweep, tmp_path):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"

    def cluster():
        here = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        scheduler = start("-m", "dask", "scheduler", "--port", port, *here[:2], "--no-dashboard")
        threads = ("--nthreads", 1, "--preload", HELD_UP)
        return scheduler, start("-m", "dask", "worker", address, *threads, *here)

    scheduler, _ = cluster()
    hold(tmp_path, RUNS[1], 1)
    process = sweep("three", "--scheduler", address)
    held(tmp_path, RUNS[1])
    wait_until(lambda: lines(tmp_path) == 1)
    times = timings(tmp_path, RUNS[1])
    scheduler.kill()
    assert finish(process, code=1) == [
        f"pilcro: the scheduler is gone; 1 of 3 runs are stored, {GOES_ON}"
    ]
    release(tmp_path)
    cluster()
    assert finish(sweep("three", "--scheduler", address)) == []
    check_complete(tmp_path, (RUNS[1], times))
    assert started(tmp_path).count(RUNS[0].key) == 1


def test_no_scheduler(sweep):
    address = f"tcp://127.0.0.1:{free_port()}"
    assert finish(sweep("three", "--scheduler", address), code=1) == [
        f"pilcro: no scheduler answers at {address}"
    ]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_sweep_that_is_stopped(sweep, tmp_path, name):
    """Its workers end with it, whether it can say so or not; the same command completes it."""
    hold(tmp_path, RUNS[1], 1)
    process = sweep()
    held(tmp_path, RUNS[1])
    wait_until(lambda: lines(tmp_path) == 1)
    times = timings(tmp_path, RUNS[1])
    if name == "SIGKILL":
        process.kill()
        finish(process, code=-signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert finish(process, code=1) == [
            f"pilcro: interrupted; 1 of 3 runs are stored, {GOES_ON}"
        ]
    wait_until(lambda: of_group(process) == [])
    assert lines(tmp_path) == 1
    release(tmp_path)
    assert finish(sweep()) == []
    check_complete(tmp_path, (RUNS[1], times))
    assert started(tmp_path) == [RUNS[i].key for i in (0, 1, 1, 2)]


def store(folder, **more):
    """A file with the record of the first run."""
    entry = {"experiment": "three", "method": "none"}
    results.append(path_of(folder), entry | train(RUNS[0]) | more)


def test_a_full_disk(sweep, tmp_path):
    """The line is torn where the disk ends; when there is room, that run alone is repeated."""
    store(tmp_path, padding="x" * 1_000_000)  # more than a checkpoint, which may not be refused
    path = path_of(tmp_path)
    before, room = path.read_bytes(), 1000
    limit = len(before) + room
    assert finish(sweep(LARGEST_FILE=str(limit)), code=1) == [
        f"pilcro: {NAMED}: only a part of the line could be written; is the disk full?"
    ]
    assert path.stat().st_size == limit
    assert path.read_bytes().startswith(before)
    torn = rf"pilcro: {NAMED}: .* a torn last line of {room} bytes"
    said = finish(sweep())
    assert len(said) == 2
    assert all(re.match(torn, line) for line in said)
    check_complete(tmp_path)
    assert RUNS[0].key not in started(tmp_path)


def test_no_room_for_a_checkpoint(sweep, tmp_path):
    [said] = finish(sweep(LARGEST_FILE="1000"), code=1)
    path = checkpoint(tmp_path, RUNS[0])
    assert said.startswith(f"pilcro: checkpoint {path} could not be written: ")
    assert list(path.parent.iterdir()) == []


def test_two_sweeps_at_once(sweep, tmp_path):
    hold(tmp_path, RUNS[0], 1)
    first = sweep()
    held(tmp_path, RUNS[0])
    assert finish(sweep(), code=1) == [
        f"pilcro: another sweep is at work on {NAMED}; wait for it, or choose another folder"
    ]
    release(tmp_path)
    assert finish(first) == []
    check_complete(tmp_path)
    assert sorted(started(tmp_path)) == sorted(run.key for run in RUNS)


def test_a_line_that_is_not_json(sweep, tmp_path):
    """Not the last one: somebody has edited the file, and nothing is touched."""
    store(tmp_path)
    path = path_of(tmp_path)
    path.write_text("a remark\n" + path.read_text())
    before = path.read_bytes()
    [said] = finish(sweep(), code=1)
    assert said.startswith(f"pilcro: {NAMED}, line 1, is not JSON: ")
    assert path.read_bytes() == before


def test_trials_that_diverge(sweep, tmp_path):
    """They are stored as such, and never chosen."""
    assert finish(sweep("tested", "--methods", "wild")) == []
    records = results.read(path_of(tmp_path, "tested"))
    rates = [record["config"]["learning_rate"] for record in records]
    assert sorted(rates[:3]) == [0.05, 1e5, 1e30]
    for record in records:
        diverged = "diverged_in_epoch" in record["metrics"]
        assert diverged == (record["config"]["learning_rate"] > 1)
    assert rates[3:] == [0.05]
    assert records[3]["config"]["evaluate_on"] == "test"
    assert finish(sweep("tested", "--methods", "wild")) == []
    assert results.read(path_of(tmp_path, "tested")) == records
