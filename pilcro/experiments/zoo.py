"""The report card of torchvision's 80 classification models: ``python -m pilcro.experiments.zoo``.

Writes two files to ``data/results/zoo``: ``landscapes.jsonl`` has the closed form of every model at
224 pixels and at its own size, in numbers and as a thumbnail; ``sampled.jsonl`` says how far it is
from sampled networks. An entry that is there is not computed again: interrupt it when you like,
and delete a file to have it made anew.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pilcro import closed_form
from pilcro.experiments import results
from pilcro.experiments.sampling import NETWORKS, agreement, sample
from pilcro.experiments.thumbnail import thumbnail
from pilcro.experiments.torchvision_models import (
    COMMON_SIZE,
    default_size,
    entries,
    family,
    initial,
)

PARTS = 64  # of 2 networks each, at most
INPUTS = 2  # for each network
SECONDS = 10.0  # after which no more networks are drawn for an entry

Entry = tuple[str, int, str]  # model, image size, mode of its batch norm


def main(models: tuple[str, ...] = (), /, folder: Path | None = None) -> None:
    """Compute what the two files lack.

    Args:
        models: torchvision's names; none stands for all.
        folder: where the files lie; data/results/zoo if it is not given.
    """
    folder = folder or results.folder() / "zoo"
    trained = [(*entry, "train") for entry in entries(models)]
    complete(folder / "landscapes.jsonl", trained, landscape_record)
    complete(folder / "sampled.jsonl", [*evaluated(trained), *trained], sampled_record)


def evaluated(trained: list[Entry]) -> list[Entry]:
    """The cheapest model of each family that has batch norm, to be sampled in evaluation mode."""
    cheapest: dict[str, str] = {}
    for name, size, _ in trained:
        if size == COMMON_SIZE:
            cheapest.setdefault(family(name), name)
    return [(name, COMMON_SIZE, "eval") for name in cheapest.values() if normalises(initial(name))]


def normalises(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def complete(path: Path, wanted: Iterable[Entry], compute: Callable[..., dict]) -> None:
    """Append the records of the wanted entries that the file lacks."""
    results.complete(path, wanted, compute, entry_of, "{} at {}, {}")


def entry_of(run: dict) -> Entry:
    return run["network"], run["config"]["image_size"], run["config"]["batch_norm"]


def landscape_record(name: str, size: int, batch_norm: str) -> dict:
    landscape = closed_form(in_mode(initial(name), batch_norm), size)
    metrics = {
        **{
            key: value if math.isfinite(value) else None
            for key, value in landscape.summary().items()
        },
        "exact": landscape.exact,
        # "layer1.0.bn1: batch norm ...": the module is left out
        "reasons": sorted({reason.partition(": ")[2] for reason in landscape.reasons}),
        "thumbnail": thumbnail(landscape),
    }
    return record(name, size, batch_norm, "closed form", {"weights": "expected"}, metrics)


def sampled_record(name: str, size: int, batch_norm: str) -> dict:
    """The closed form against networks that are drawn until the time is up."""
    generator = torch.Generator().manual_seed(0)
    landscape = closed_form(in_mode(initial(name), batch_norm), size)
    parts = sample(
        lambda: in_mode(initial(name, generator), batch_norm),
        size,
        parts=PARTS,
        inputs=INPUTS,
        seconds=SECONDS,
        generator=generator,
    )
    metrics = {
        "exact": landscape.exact,
        "networks": NETWORKS * len(parts),
        **agreement(landscape.importance, [part.importance for part in parts]),
    }
    return record(name, size, batch_norm, "Monte Carlo", {"inputs": INPUTS}, metrics)


def in_mode(model: nn.Module, batch_norm: str) -> nn.Module:
    """As the first training step sees it, or with running statistics."""
    return model.eval() if batch_norm == "eval" else model


def record(name: str, size: int, batch_norm: str, method: str, config: dict, metrics: dict) -> dict:
    return {
        "experiment": "report card of the zoo",
        "dataset": "white noise",
        "network": name,
        "method": method,
        "seed": 0,
        "config": {
            "family": family(name),
            "image_size": size,
            "default_size": default_size(name),
            "batch_norm": batch_norm,
            **config,
        },
        "metrics": metrics,
        "provenance": results.provenance(),
    }


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
