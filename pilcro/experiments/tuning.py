"""Which trial of a method runs on the test images, and that nobody looks at these twice."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pilcro.experiments.config import Run
from pilcro.experiments.lab import Entry, Experiment


def finals(
    experiment: Experiment, done: Mapping[str, dict], before: Mapping[str, dict] | None = None
) -> list[Entry]:
    """The best trial of each method on held-out seeds and test images.

    Args:
        experiment: of ``EXPERIMENTS``.
        done: records of the trials by the key of their runs.
        before: those of an earlier sweep. Its choice stands where it had the same trials: between
            trials that are nearly equal rounding decides, on another processor for another one,
            and then other runs would be made.

    Raises:
        KeyError: a trial is missing.
    """
    return [
        (method, replace(setting, seed=seed, evaluate_on="test", **trial))
        for setting in experiment.settings
        for method in experiment.methods
        for trial in [chosen(experiment, setting, method, done, before or {})]
        for seed in experiment.test_seeds
    ]


def chosen(
    experiment: Experiment,
    setting: Run,
    method: str,
    done: Mapping[str, dict],
    before: Mapping[str, dict],
) -> dict:
    """The best trial in ``before`` if all of the method's are there, else in ``done``."""
    here = best_trial(experiment, setting, method, done)
    try:
        return best_trial(experiment, setting, method, before)
    except KeyError:
        return here


def overruled(
    experiment: Experiment, done: Mapping[str, dict], before: Mapping[str, dict]
) -> Iterator[str]:
    """Where ``before`` has chosen a trial that is not the best in ``done``, and by how much."""
    for setting in experiment.settings:
        for method in experiment.methods:
            stands = chosen(experiment, setting, method, done, before)
            better = best_trial(experiment, setting, method, done)
            if stands != better:
                there, here = (replace(setting, **trial) for trial in (stands, better))
                gain = validated(experiment, here, done) - validated(experiment, there, done)
                yield (
                    f"{method}, {setting.dataset}: {difference(here, there)}, would be better here "
                    f"by {gain:.4f} in validation accuracy; the choice of the stored results stands"
                )


def best_trial(experiment: Experiment, setting: Run, method: str, done: Mapping[str, dict]) -> dict:
    """That with the highest mean validation accuracy; the first of equals. A trial that diverged
    on one of its seeds counts as zero there."""
    return max(
        experiment.methods[method],
        key=lambda trial: validated(experiment, replace(setting, **trial), done),
    )


def validated(experiment: Experiment, run: Run, done: Mapping[str, dict]) -> float:
    """Mean validation accuracy over the tuning seeds."""
    runs = (replace(run, seed=seed) for seed in experiment.tuning_seeds)
    found = [done[run.key]["metrics"].get("validation_accuracy", 0.0) for run in runs]
    return sum(found) / len(found)


def refuse_second_look(run: Run, done: Iterable[dict]) -> None:
    """The test images are looked at once by each method and seed.

    Raises:
        ValueError: there is a record of the same method and seed on test images, with other
            settings.
    """
    if run.evaluate_on != "test":
        return
    tested = (r["config"] for r in done if r["config"].get("evaluate_on") == "test")
    for other in map(Run.from_dict, tested):
        if other != run and question(other) == question(run):
            raise ValueError(
                f"run {other.key} has looked at the test images already, with the same method and "
                f"seed {run.seed} and other settings ({difference(run, other)}): tune on "
                "validation images"
            )


def question(run: Run) -> tuple:
    """What stays of a run when all that can be tuned is left out."""
    method = run.method
    return (
        *(run.dataset, run.images, run.network, run.flat, run.seed, run.weight_decay > 0),
        *(run.change, run.drop > 0, run.dropped, method.growth),
        *(method.name, method.form, method.estimator),
    )


def difference(one: Run, two: Run) -> str:
    """
    >>> difference(Run(epochs=1), Run(epochs=2))
    'epochs 1, not 2'
    """
    ours, theirs = ({**run.as_dict(), **run.as_dict()["method"]} for run in (one, two))
    return ", ".join(
        f"{name} {ours[name]}, not {theirs[name]}"
        for name in ours
        if name != "method" and ours[name] != theirs[name]
    )
