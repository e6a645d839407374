"""Runs that are stored: a file of results, and what a run needs to go on in it."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from pilcro.experiments import results
from pilcro.experiments.config import Run
from pilcro.experiments.lab import refuse_second_look
from pilcro.experiments.train import train


@dataclass
class Results:
    """The records of one file, by the key of their runs; the first of equal keys counts.

    Raises:
        ValueError: a line of the file is corrupt, or is no record of a run.
    """

    path: Path
    records: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            for number, record in enumerate(results.read(self.path), 1):
                if "key" not in record:
                    raise ValueError(f"{self.path}, line {number}, is not the record of a run")
                self.records.setdefault(record["key"], record)

    def add(self, experiment: str, method: str, record: dict) -> None:
        """Store a record, and only then forget how the run got there."""
        record = {"experiment": experiment, "method": method, **record}
        # The command was given to this process, not to the worker.
        record["provenance"] = record["provenance"] | {"command": results.command()}
        results.append(self.path, record)
        self.records.setdefault(record["key"], record)
        checkpoint = self.checkpoint(record["key"])
        checkpoint.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or not there: others may come and go meanwhile
            checkpoint.parent.rmdir()

    def checkpoint(self, key: str) -> Path:
        return self.path.with_suffix(".checkpoints").absolute() / f"{key}.pt"


def train_and_store(run: Run, out: Path | None = None) -> dict:
    """Train one network, with a progress bar, and add the record to a file.

    Args:
        run: the configuration.
        out: file of results; a run that it holds is not repeated, and one that was interrupted
            goes on from its last epoch. None stores nothing.

    Returns:
        The record.

    Raises:
        ValueError: a run on test images that would not be stored, or would look once more.
        As :func:`pilcro.experiments.train.train` does.

    >>> found = train_and_store(Run(images=100, epochs=1))
    >>> 0 <= found["metrics"]["validation_accuracy"] <= 1
    True
    """
    stored = None if out is None else Results(out)
    checkpoint = None
    if stored is not None:
        if run.key in stored.records:
            return stored.records[run.key]
        refuse_second_look(run, stored.records.values())
        checkpoint = stored.checkpoint(run.key)
    elif run.evaluate_on == "test":
        raise ValueError("a run that looks at the test images must be stored: give out")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun has started
    disable = None if first else True
    with tqdm(total=run.epochs, desc=run.network, unit="epoch", disable=disable) as bar:

        def report(epoch: int, accuracy: float) -> None:
            bar.update(epoch - bar.n)
            bar.set_postfix(accuracy=f"{accuracy:.3f}")

        record = train(run, checkpoint=checkpoint, report=report)
    if stored is not None and first:
        stored.add("single", run.method.name, record)
    return record
