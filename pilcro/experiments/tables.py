"""From stored runs to tables: what a run is judged by, and methods compared on the same seeds."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean

from pilcro.checks import one_of
from pilcro.experiments.metrics import OBJECTS
from pilcro.experiments.splits import CLASSES
from pilcro.experiments.statistics import Comparison, compare, holm
from pilcro.experiments.stored import Results

DATASETS = {
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_subset": "Fashion-MNIST",
    "scenes_centred": "centred scenes",
    "scenes_anywhere": "scattered scenes",
}
NETWORKS = {
    "small_cnn": "small CNN",
    "small_resnet": "small ResNet",
    "position_cnn": "position CNN",
    "resnet18": "ResNet-18",
    "vgg11": "VGG-11",
}

Metric = Callable[[dict], float | int | None]

CHANCE = 1 / CLASSES  # accuracy of a network that says the same of every image

# Accuracies in what a run has measured under a name.
ACCURACIES: dict[str, Callable[[dict], Iterable[float]]] = {
    "accuracy": lambda metrics: [metrics["accuracy"]],
    "noise": lambda metrics: metrics["noise"].values(),
    "corruption": lambda metrics: [x for values in metrics["corruption"].values() for x in values],
    "by_place": lambda metrics: [x / OBJECTS for row in metrics["by_place"] for x in row],
}


def share_right(name: str) -> Metric:
    """A metric: the mean accuracy in what was measured under a name; None where nothing was.

    A run that diverged has no network to measure, and counts as one that guesses: leaving it out
    would flatter the method that made it diverge.

    >>> share_right("noise")({"metrics": {"noise": {"0.1": 0.5, "0.2": 0.3}}})
    0.4
    >>> share_right("accuracy")({"metrics": {"diverged_in_epoch": 3}, "dataset": "cifar10"})
    0.1
    """

    def metric(run: dict) -> float | None:
        metrics, of_places = run["metrics"], name == "by_place"
        if name in metrics:
            return fmean(ACCURACIES[name](metrics))
        applies = name == "accuracy" or of_places == run["dataset"].startswith("scenes")
        return CHANCE if applies and "diverged_in_epoch" in metrics else None

    return metric


def curve(run: dict) -> list[float]:
    """Validation accuracies of all epochs; after it diverged, a network guesses."""
    found = run["curves"]["accuracy"]
    missing = run["config"]["epochs"] - len(found)
    return found + missing * [CHANCE]


# What a number is read from; None where a run has none.
METRICS: dict[str, Metric] = {
    "accuracy": share_right("accuracy"),
    "calibration error": lambda run: run["metrics"].get("calibration_error"),
    "accuracy in noise": share_right("noise"),
    "accuracy corrupted": share_right("corruption"),
    "accuracy everywhere": share_right("by_place"),
    "roughness": lambda run: run["landscape"].get("end", {}).get("roughness"),
    "coverage": lambda run: run["landscape"].get("end", {}).get("coverage"),
    "attribution spread": lambda run: run["metrics"].get("attribution_spread"),
    "neuron coverage": lambda run: run["metrics"].get("neuron_coverage"),
    "area under the curve": lambda run: fmean(curve(run)),
    "processor seconds": lambda run: sum(run["curves"]["processor_seconds"]),
}


def reaching(target: float, per: str = "epochs") -> Metric:
    """A metric: what it takes until the validation accuracy reaches a target.

    Args:
        target: accuracy.
        per: ``"epochs"``, ``"steps"`` or ``"processor_seconds"``.

    Returns:
        A function of a run; a run that does not get there takes one epoch more than it had, which
        is less than it would have needed.

    Raises:
        ValueError: another ``per``.

    >>> run = {"curves": {"accuracy": [0.2, 0.6], "processor_seconds": [1.5, 2.5]}}
    >>> run["config"] = {"epochs": 2}
    >>> reaching(0.5)(run), reaching(0.5, "processor_seconds")(run), reaching(0.9)(run)
    (2, 4.0, 3)
    """
    one_of("per", per, ("epochs", "steps", "processor_seconds"))

    def metric(run: dict) -> float | int:
        accuracies, seconds = curve(run), run["curves"]["processor_seconds"]
        there = (epoch for epoch, value in enumerate(accuracies, 1) if value >= target)
        epochs = next(there, len(accuracies) + 1)
        if per == "processor_seconds":
            missing = len(accuracies) + 1 - len(seconds)
            return sum([*seconds, *missing * [fmean(seconds)]][:epochs])
        if per == "steps":
            return epochs * (run["config"]["images"] // run["config"]["batch"])
        return epochs

    return metric


def finals(*paths: str | os.PathLike) -> list[dict]:
    """The runs on test images in files of results, each once."""
    return [
        record
        for path in paths
        for record in Results(Path(path)).records.values()
        if record["config"]["evaluate_on"] == "test"
    ]


def cell(run: dict) -> str:
    """What was compared in: data, number of images, network.

    >>> config = {"dataset": "cifar10", "images": 1000, "network": "small_cnn"}
    >>> cell({"config": config})
    'CIFAR-10, 1,000 images, small CNN'
    """
    config = run["config"]
    names = DATASETS[config["dataset"]], NETWORKS[config["network"]]
    return f"{names[0]}, {config['images']:,} images, {names[1]}"


def by_seed(runs: Iterable[dict], metric: Metric) -> dict[str, dict[str, dict[int, float]]]:
    """A metric by cell, method and seed, where there is one: a run that diverged has no landscape.

    Raises:
        ValueError: two runs differ in something else.
    """
    table: dict[str, dict[str, dict[int, float]]] = {}
    keys: dict[tuple, str] = {}
    for run in runs:
        where = cell(run), run["method"], run["seed"]
        if keys.setdefault(where, run.get("key")) != run.get("key"):
            raise ValueError(
                f"{where[0]}: two different runs of {where[1]} have seed {where[2]}, "
                f"{keys[where]} and {run['key']}; keep them in files of their own"
            )
        value = metric(run)
        if value is not None:
            table.setdefault(where[0], {}).setdefault(where[1], {})[where[2]] = value
    return table


def compared(
    runs: Iterable[dict],
    metric: Metric,
    method: str,
    control: str = "none",
) -> dict[str, Comparison]:
    """A method against a control in each cell, over the seeds that both have.

    Cells where they share fewer than three are left out.

    >>> config = {"dataset": "cifar10", "images": 1000, "network": "small_cnn"}
    >>> runs = [
    ...     {"config": config, "method": m, "seed": s, "metrics": {"accuracy": a + s / 10}}
    ...     for m, a in (("none", 0.4), ("¶ log", 0.45)) for s in (1, 2, 3)
    ... ]
    >>> found = compared(runs, METRICS["accuracy"], "¶ log")
    >>> {name: round(each.difference, 3) for name, each in found.items()}
    {'CIFAR-10, 1,000 images, small CNN': 0.05}
    """
    found = {}
    for name, methods in by_seed(runs, metric).items():
        treated, untreated = methods.get(method, {}), methods.get(control, {})
        seeds = sorted(treated.keys() & untreated.keys())
        if len(seeds) >= 3:
            found[name] = compare([treated[s] for s in seeds], [untreated[s] for s in seeds])
    return found


def overview(path: str | os.PathLike, shown: Iterable[str] = METRICS) -> str:
    """Each method against none, metric by metric: means, differences with 95 % intervals, and p
    values corrected for the number of methods.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than runs.
    """
    import pandas

    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}")
    runs = finals(path)
    if not runs:
        return f"{path}: no runs on test images yet"
    lines, treated = [], {run["method"] for run in runs} - {"none"}
    for name in shown:
        against_none = {m: compared(runs, METRICS[name], m) for m in treated}
        for place, methods in by_seed(runs, METRICS[name]).items():
            found = {m: cells[place] for m, cells in against_none.items() if place in cells}
            p = holm({m: each.p for m, each in found.items()})
            rows = [row(m, values, found.get(m), p) for m, values in methods.items()]
            lines += [f"{place}: {name}", pandas.DataFrame(rows).to_string(index=False), ""]
    return "\n".join(lines)


def row(
    method: str, values: Mapping[int, float], found: Comparison | None, p: Mapping[str, float]
) -> dict[str, str]:
    line = {"method": method, "seeds": str(len(values)), "mean": f"{fmean(values.values()):.4g}"}
    if found is None:
        return line | {"difference": "", "interval": "", "p": "", "could see": ""}
    return line | {
        "difference": f"{found.difference:+.3g}",
        "interval": f"{found.low:+.3g} to {found.high:+.3g}",
        "p": f"{p[method]:.2g}",
        "could see": f"{found.detectable:.2g}",
    }
