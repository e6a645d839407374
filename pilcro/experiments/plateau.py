"""Trials again, on ten more seeds and the same validation images: how good is each really?

Two seeds have chosen the trials that the comparisons are made of; chapter 11 asks how much that was
luck. The chosen ones come first. No test image is looked at.

``python -m pilcro.experiments.plateau none "¶ log"``, or without names for all methods.
"""

import dataclasses
import sys

from tqdm import tqdm

from pilcro.experiments import lab, results
from pilcro.experiments.config import Run
from pilcro.experiments.stored import Results
from pilcro.experiments.train import Training, reproducible

EXPERIMENT = lab.EXPERIMENTS["cifar10_1k"]
SETTING = EXPERIMENT.settings[0]
TRIALS = results.folder() / "lab" / "cifar10_1k.jsonl"
SEEDS = range(200, 210)  # neither those of the trials nor those of the comparisons
PATH = results.folder() / "plateau" / "cifar10_1k.jsonl"


class Blind(Training):
    """Does not look at its landscape, which takes as long as the training."""

    def measure_landscape(self) -> None:
        pass


def train(run: Run) -> dict:
    """The record of a run."""
    with reproducible(run):
        training = Blind(run, 0, 1)
        while training.epoch < run.epochs and not training.diverged:
            training.one_epoch()
    return training.record()


def main(methods: list[str]) -> None:
    stored, done = Results(PATH), Results(TRIALS).records
    best = {method: lab.best_trial(EXPERIMENT, SETTING, method, done) for method in methods}
    wanted = [
        (trial != best[method], method, dataclasses.replace(SETTING, seed=seed, **trial))
        for method in methods
        for trial in lab.METHODS[method]
        for seed in SEEDS
    ]
    wanted.sort(key=lambda entry: entry[0])
    for _, method, run in tqdm([entry for entry in wanted if entry[2].key not in stored.records]):
        stored.add("plateau", method, train(run))


if __name__ == "__main__":
    main(sys.argv[1:] or list(lab.METHODS))
