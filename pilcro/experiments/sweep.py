"""Complete experiments: make every run that their files of results lack, on many workers.

The work is dask.distributed's; this process alone writes. A run whose worker dies starts again on
another, from its last checkpoint.
"""

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tqdm.auto import tqdm

from pilcro.checks import positive_int
from pilcro.experiments import lab, results, tuning
from pilcro.experiments.config import NetworkName, Run
from pilcro.experiments.lab import Entry, Experiment
from pilcro.experiments.stored import Results
from pilcro.experiments.train import train

TOPIC = "pilcro"  # of what the workers report
POLL = 2  # seconds between looks at the workers


class Unfinished(OSError):
    """A sweep ended without all of its runs; what it finished is stored."""


def sweep(
    name: str,
    folder: Path,
    *,
    networks: Collection[NetworkName] = (),
    methods: Collection[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    choose_anew: bool = False,
) -> None:
    """Complete an experiment, or all those of a tier.

    Args:
        name: of an experiment or a tier in :mod:`pilcro.experiments.lab`.
        folder: holds a file for each experiment.
        networks: those wanted; none stands for all.
        methods: those wanted; none stands for all.
        scheduler: address of a dask scheduler, "tcp://10.0.0.1:8786", say; None starts workers on
            this machine. Its workers need pilcro, and the folder at the same path, for the
            checkpoints.
        workers: how many to start on this machine, where there is no scheduler; None stands for
            one a core, or a single one if runs need a graphics card.
        choose_anew: run the trials that are best here on test images, whatever the results that
            ship with pilcro have chosen.

    Raises:
        TypeError, ValueError: a wrong argument, nothing to run with it, or a run that would look
            at the test images once more.
        BlockingIOError: another sweep is at work on one of the files.
        Unfinished: interrupted, the scheduler is gone, or runs were given up.
        FetchError: a data set is missing.
        OSError: the disk is full, say.
    """
    names = lab.TIERS.get(name, (name,))
    refuse_unknown("experiment", names, lab.EXPERIMENTS, lab.TIERS)
    refuse_unknown("method", methods, *(lab.EXPERIMENTS[each].methods for each in names))
    if workers is not None:
        positive_int("workers", workers)
        if scheduler is not None:
            raise ValueError("workers are started on this machine, or a scheduler has its own")
    wanted = {each: lab.narrowed(lab.EXPERIMENTS[each], networks, methods) for each in names}
    wanted = {each: found for each, found in wanted.items() if found.settings and found.methods}
    if not wanted:
        raise ValueError(f"{name} has no runs of {', '.join([*networks, *methods])}")
    with ExitStack() as stack:
        plans = [
            (
                Plan(each, found, {} if choose_anew else shipped(each)),
                stack.enter_context(claimed(folder / f"{each}.jsonl")),
            )
            for each, found in wanted.items()
        ]
        if all(plan.done(stored) == plan.total for plan, stored in plans):
            print(f"{name}: complete in {folder}")
            return
        cards = any(
            s.device.startswith("cuda") for plan, _ in plans for s in plan.experiment.settings
        )
        client = stack.enter_context(connected(scheduler, workers, cards))
        for plan, stored in plans:
            complete(client, plan, stored)


def refuse_unknown(what: str, names: Collection[str], *known: Collection[str]) -> None:
    everything = dict.fromkeys(name for group in known for name in group)
    if unknown := [name for name in names if name not in everything]:
        raise ValueError(f"{what} must be one of {', '.join(everything)}; got {', '.join(unknown)}")


def shipped(name: str) -> dict[str, dict]:
    """The records of an experiment that ship with pilcro, by key; none if there are none."""
    tiers = [tier for tier, names in lab.TIERS.items() if name in names]
    files = [results.folder() / tier / f"{name}.jsonl" for tier in tiers]
    return {key: record for path in files for key, record in Results(path).records.items()}


@dataclass
class Plan:
    """What a sweep does for one experiment."""

    name: str
    experiment: Experiment
    before: dict[str, dict]  # records whose choice of trials stands

    @property
    def total(self) -> int:
        found = self.experiment
        finals = len(found.methods) * len(found.settings) * len(found.test_seeds)
        return len(lab.trials(found)) + finals

    def missing(self, stored: Results) -> list[Entry]:
        """Trials first; runs on test images when all trials are there."""
        entries = lab.trials(self.experiment)
        if all(run.key in stored.records for _, run in entries):
            entries = tuning.finals(self.experiment, stored.records, self.before)
        return [entry for entry in entries if entry[1].key not in stored.records]

    def done(self, stored: Results) -> int:
        trials = lab.trials(self.experiment)
        found = sum(run.key in stored.records for _, run in trials)
        if found < len(trials):
            return found
        return self.total - len(self.missing(stored))


@contextmanager
def claimed(path: Path) -> Iterator[Results]:
    """The file's records, for this process alone to add to.

    Raises:
        BlockingIOError: another sweep has claimed it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.sweep.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another sweep is at work on {path}; wait for it, or choose another folder"
        ) from None
    try:
        yield Results(path)
    finally:
        lock.release()


@contextmanager
def connected(scheduler: str | None, workers: int | None, cards: bool) -> Iterator:
    """A client of the scheduler, or of workers on this machine, gone afterwards.

    Raises:
        Unfinished: the scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.utils import silence_logging_cmgr
    except ImportError as error:
        raise ImportError(
            "a sweep needs dask.distributed: pip install 'pilcro[experiments]'"
        ) from error
    if scheduler is not None:
        try:
            client = Client(scheduler)
        except OSError:
            raise Unfinished(f"no scheduler answers at {scheduler}") from None
        with silence_logging_cmgr("critical", "distributed.client"), client:
            yield client
        return
    # dask sets a threshold at which glibc returns memory; with one, a training step spends half of
    # its time on asking for the same pages again.
    name = "distributed.nanny.pre-spawn-environ"
    kept = {k: v for k, v in dask.config.get(name).items() if not k.startswith("MALLOC_")}
    # Ctrl-C is for this process, which then stops the workers
    with deaf_to_interrupts(), dask.config.set({name: kept}):
        cluster = LocalCluster(
            n_workers=workers or (1 if cards else None),
            threads_per_worker=1,
            resources={"GPU": 1} if cards else {},
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # a free port: there may be other sweeps
            silence_logs="CRITICAL",
        )
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def complete(client, plan: Plan, stored: Results) -> None:
    """Run and store what is missing, the trials and then the tests."""
    given_up: list[str] = []
    with tqdm(
        total=plan.total,
        initial=plan.done(stored),
        desc=plan.name,
        unit="run",
        smoothing=0,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:
        try:
            while (entries := plan.missing(stored)) and not given_up:
                for _, run in entries:
                    tuning.refuse_second_look(run, stored.records.values())
                if entries[0][1].evaluate_on == "test":
                    for line in tuning.overruled(plan.experiment, stored.records, plan.before):
                        bar.write(f"{plan.name}: {line}", sys.stderr)
                given_up = run_all(client, plan.name, entries, stored, bar)
        except KeyboardInterrupt:
            raise Unfinished(so_far("interrupted", bar)) from None
        except CancelledError:
            raise Unfinished(so_far("the scheduler is gone", bar)) from None
    if given_up:
        raise Unfinished(so_far(f"given up: {', '.join(given_up)}", bar))


def so_far(what: str, bar: tqdm) -> str:
    return (
        f"{what}; {bar.n} of {bar.total} runs are stored, and the same command goes on from there"
    )


def run_all(client, name: str, entries: list[Entry], stored: Results, bar: tqdm) -> list[str]:
    """Submit the runs and store each as soon as it is there; returns those given up, and why.

    No more at once than there are workers: one that dies is held against all that it was given.
    """
    from distributed import KilledWorker, wait

    given_up, pending, this = [], {}, uuid4().hex
    card = any(run.device.startswith("cuda") for _, run in entries)
    needs = {"GPU": 1} if card else {}
    waiting = list(reversed(entries))
    bars = Bars({run.key: f"{run.network}, {method}, seed {run.seed}" for method, run in entries})
    client.subscribe_topic(TOPIC, bars)
    try:
        while waiting or pending:
            count = workers_with(client, needs)
            bar.set_postfix(workers=count)
            for _ in range(min(count - len(pending), len(waiting))):
                method, run = waiting.pop()
                future = client.submit(
                    job, run, stored.checkpoint(run.key), key=f"{run.key}-{this}", resources=needs
                )
                pending[future] = method, run
            if not pending:
                time.sleep(POLL)
                continue
            with suppress(asyncio.TimeoutError):
                wait(list(pending), timeout=POLL, return_when="FIRST_COMPLETED")
            for future in [future for future in pending if future.done()]:
                method, run = pending.pop(future)
                try:
                    record = future.result()
                except KilledWorker:
                    given_up.append(f"run {run.key}, whose worker died again and again")
                else:
                    stored.add(name, method, record)
                    bar.update()
                bars.finish(run.key)
    finally:
        if client.status == "running":
            client.unsubscribe_topic(TOPIC)
            client.cancel(list(pending))
        bars.close()
    return given_up


def workers_with(client, needs: dict[str, int]) -> int:
    """How many workers have what a run needs; more may come, and some go.

    Raises:
        CancelledError: the scheduler is gone.
    """
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    if client.status != "running":
        raise CancelledError
    return sum(worker["resources"].keys() >= needs.keys() for worker in found)


def job(run: Run, checkpoint: Path) -> dict:
    """What a worker does."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        raise ValueError(
            f"worker {worker.address} has {worker.state.nthreads} threads, but a run needs a "
            "process of its own: start workers with --nthreads 1"
        )

    def report(epoch: int, accuracy: float) -> None:
        found = {"key": run.key, "of": run.epochs}
        worker.log_event(TOPIC, found | {"epoch": epoch, "accuracy": accuracy})

    return train(run, checkpoint=checkpoint, report=report)


class Bars:
    """A progress bar for each run that is under way, below that of the sweep; terminals only."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels, self.bars, self.lock = labels, {}, threading.Lock()

    def __call__(self, event: tuple[float, dict]) -> None:
        """In a thread of the client's, which has no use for an error."""
        found = event[1]
        key = found["key"]
        with self.lock:
            if key not in self.labels:
                return  # it has finished, or is another sweep's
            if key not in self.bars:
                self.bars[key] = tqdm(
                    total=found["of"],
                    desc=self.labels[key],
                    initial=found["epoch"] - 1,
                    unit="epoch",
                    leave=False,
                    disable=None,
                )
            bar = self.bars[key]
            bar.update(found["epoch"] - bar.n)
            bar.set_postfix(accuracy=f"{found['accuracy']:.3f}")

    def finish(self, key: str) -> None:
        with self.lock:
            self.labels.pop(key, None)
            if key in self.bars:
                self.bars.pop(key).close()

    def close(self) -> None:
        for key in list(self.labels):
            self.finish(key)
