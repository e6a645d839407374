"""The closed form costs less than one training step: every torchvision model, batch 1, one thread.

Without ``--full``, one model of each family is measured and nothing is stored. With it, all 80 at
224 pixels and at their own sizes go to data/results/cost/closed_form.jsonl, and what is there
already is not measured again; delete the file to start anew.
"""

from pathlib import Path

import pandas
import torch
import tyro
from _timing import in_turns, ratio, seconds
from torch import nn

from pilcro import closed_form
from pilcro.experiments import results
from pilcro.experiments.torchvision_models import default_size, entries, family, initial

TARGETS = {"expected": 0.1, "drawn": 0.5}  # of one forward and backward


def main(models: tuple[str, ...] = (), /, full: bool = False, path: Path | None = None) -> None:
    """Measure, and print a table of ratios to one forward and backward of the same model.

    Args:
        models: torchvision's names; none stands for one of each family.
        full: measure all models and store the results.
        path: of the results; data/results/cost/closed_form.jsonl if it is not given.
    """
    path = path or results.folder() / "cost" / "closed_form.jsonl"
    wanted = entries(models) if full or models else one_of_each_family()
    runs = results.complete(
        path if full else None,
        wanted,
        measure,
        lambda run: (run["network"], run["config"]["image_size"]),
        "{} at {}",
    )
    print(table(runs).to_string(index=False))


def one_of_each_family() -> list[tuple[str, int]]:
    """The cheapest at its own size."""
    cheapest: dict[str, tuple[str, int]] = {}
    for name, size in entries():
        if size == default_size(name):
            cheapest.setdefault(family(name), (name, size))
    return list(cheapest.values())


def measure(name: str, size: int) -> dict:
    model = initial(name)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    times = in_turns(
        {
            "training": lambda: train(model, image),
            "expected": lambda: closed_form(model, size),
            "drawn": lambda: closed_form(model, size, weights="drawn"),
        }
    )
    ratios = {weights: ratio(times, weights, "training") for weights in TARGETS}
    return {
        "experiment": "cost of the closed form",
        "dataset": "white noise",
        "network": name,
        "method": "closed form over one forward and backward at batch 1",
        "seed": 0,
        "config": {"image_size": size, "default_size": default_size(name)},
        "metrics": {
            "seconds": seconds(times),
            "ratio": ratios,
            "parameters": sum(p.numel() for p in model.parameters()),
            "rounds": len(times["training"]),
        },
        "provenance": results.provenance(),
    }


def train(model: nn.Module, image: torch.Tensor) -> None:
    """One forward and backward, gradients of all weights included."""
    model.zero_grad(set_to_none=True)
    model(image).sum().backward()


def table(runs: list[dict]) -> pandas.DataFrame:
    """One line a run, the ratios beside their targets."""
    rows = []
    for run in runs:
        ratios, own = run["metrics"]["ratio"], run["config"]["default_size"]
        row = {"model": run["network"], "size": run["config"]["image_size"]}
        row["own"] = "*" if row["size"] == own else ""
        row["training s"] = round(run["metrics"]["seconds"]["training"], 3)
        for weights, target in TARGETS.items():
            row[weights] = round(ratios[weights], 3)
            row[f"<= {target}"] = "yes" if ratios[weights] <= target else "no"
        rows.append(row)
    return pandas.DataFrame(rows)


if __name__ == "__main__":
    tyro.cli(main)
