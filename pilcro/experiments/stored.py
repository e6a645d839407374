"""Runs that are stored: a file of results, and what a run needs to go on in it."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from pilcro.experiments import results
from pilcro.experiments.config import Run
from pilcro.experiments.train import is_first, train
from pilcro.experiments.tuning import refuse_second_look


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
        folder = self.checkpoint(record["key"]).parent
        for left in folder.glob(f"{record['key']}.*"):  # one that was being written at a kill, too
            left.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or not there: others may come and go meanwhile
            folder.rmdir()

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
    disable = None if is_first() else True
    with tqdm(total=run.epochs, desc=run.network, unit="epoch", disable=disable) as bar:

        def report(epoch: int, accuracy: float) -> None:
            bar.update(epoch - bar.n)
            bar.set_postfix(accuracy=f"{accuracy:.3f}")

        record = train(run, checkpoint=checkpoint, report=report)
    if stored is not None and is_first():
        stored.add("single", method_of(run), record)
    return record


def method_of(run: Run) -> str:
    """What a single run is compared as: all that is done beside plain training, or "none".

    >>> method_of(Run()), method_of(Run(flat=True, weight_decay=0.001))
    ('none', 'weight decay 0.001 + flat')
    """
    method, parts = run.method, []
    if method.name == "objective":
        form = method.form if method.estimator == "backprop" else method.estimator
        parts.append(f"objective {form} {method.strength:g}")
    elif method.name != "plain":
        parts.append(f"{method.name.replace('_', ' ')} {method.strength:g}")
    if run.weight_decay:
        parts.append(f"weight decay {run.weight_decay:g}")
    if run.drop:
        parts.append(f"drop {run.dropped} {run.drop:g}")
    if run.change != "none":
        parts.append(run.change)
    return " + ".join(parts + ["flat"] * run.flat) or "none"
