"""The committed results of the experiments: whole, honestly tuned, and one cell of each remade.

Another processor or PyTorch adds in another order, and training makes that larger; the tolerances
below are what we promise.
"""

import math
import os
from functools import cache

import pytest

from pilcro.data import is_fetched
from pilcro.experiments import lab, results
from pilcro.experiments.config import Run
from pilcro.experiments.splits import load
from pilcro.experiments.stored import Results
from pilcro.experiments.train import train

# Besides what a sweep makes: an earlier round of the small CNN, and what was made once more, on
# another processor or with other instructions.
ROUNDS = {tier: [lab.EXPERIMENTS] for tier in lab.TIERS}
ROUNDS |= {"second_round": [lab.SECOND_ROUND], "again": [lab.SECOND_ROUND, lab.EXPERIMENTS]}
FILES = [path for name in ROUNDS for path in sorted((results.folder() / name).glob("*.jsonl"))]
ACCURACY = 0.03
ROUGHNESS = math.log(1.5)  # of its logarithm


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def stored(request):
    return Results(request.param)


def experiments(stored):
    """Those whose runs the file may hold."""
    name = stored.path.stem
    return [found[name] for found in ROUNDS[stored.path.parent.name] if name in found]


def test_there_are_results():
    assert FILES
    assert all(experiments(Results(path)) for path in FILES)


def test_each_line_is_a_run_of_its_experiment(stored):
    entries = [entry for experiment in experiments(stored) for entry in lab.trials(experiment)]
    trials = {run.key: method for method, run in entries}
    assert len(results.read(stored.path)) == len(stored.records)
    for key, record in stored.records.items():
        run = Run.from_dict(record["config"])
        assert run.key == key
        assert record["experiment"] == stored.path.stem
        if run.evaluate_on == "validation":
            assert trials[key] == record["method"]
            assert "accuracy" not in record["metrics"]
        assert not record["provenance"]["modified"]


def test_runs_on_test_images_follow_from_the_trials(stored):
    """Nobody has chosen by hand: each is the best trial of its method, on a held-out seed."""
    finals = [r for r in stored.records.values() if r["config"]["evaluate_on"] == "test"]
    assert finals
    for record in finals:
        run, method = Run.from_dict(record["config"]), record["method"]
        ((experiment, setting),) = [
            (experiment, s)
            for experiment in experiments(stored)
            for s in experiment.settings
            if (s.dataset, s.images, s.network) == (run.dataset, run.images, run.network)
        ]
        trial = lab.best_trial(experiment, setting, method, stored.records)
        assert run.seed in experiment.test_seeds
        assert all(getattr(run, name) == value for name, value in trial.items())
        lab.refuse_second_look(run, stored.records.values())


@pytest.fixture
def data(request, monkeypatch):
    """The full data sets: those of this machine, or fetched from their mirrors."""
    if not is_fetched("cifar10") and os.environ.get("PILCRO_TEST_MIRRORS") == "1":
        monkeypatch.setenv("PILCRO_DATA", str(request.getfixturevalue("mirrored")))
        load.cache_clear()
    yield
    load.cache_clear()


remade = cache(train)  # experiments share runs
MADE = [path for path in FILES if path.parent.name in lab.TIERS]


@pytest.mark.parametrize("stored", MADE, indirect=True, ids=lambda path: path.stem)
def test_one_cell_of_each_experiment_is_remade(stored, data):
    plain = [
        r
        for r in stored.records.values()
        if (r["method"], r["config"]["evaluate_on"]) == ("none", "test")
    ]
    record = min(plain, key=lambda r: r["network"])  # the small CNN where there is one: it is cheap
    run = Run.from_dict(record["config"])
    if run.dataset == "cifar10" and not is_fetched("cifar10"):
        pytest.skip("cifar10 is not here: pilcro fetch cifar10, or PILCRO_TEST_MIRRORS=1")
    assert not disagreements(record, remade(run))


def disagreements(one, other):
    """What of two records of the same run is further apart than we promise."""
    found = [
        name
        for name in ("accuracy", "validation_accuracy")
        if name in one["metrics"] and abs(one["metrics"][name] - other["metrics"][name]) > ACCURACY
    ]
    ends = (record["landscape"]["end"]["roughness"] for record in (one, other))
    if abs(math.log(next(ends) / next(ends))) > ROUGHNESS:
        found.append("roughness")
    if other["landscape"]["start"] != pytest.approx(one["landscape"]["start"], rel=0.01):
        found.append("landscape before training")
    return found


def test_a_whole_sweep_came_back():
    """With shorter vector instructions: all trials, and what was chosen by them on test images."""
    first, again = (
        Results(results.folder() / folder / "fashion_cnn.jsonl").records
        for folder in ("lab", "again")
    )
    shared = first.keys() & again.keys()
    assert {run.key for _, run in lab.trials(lab.EXPERIMENTS["fashion_cnn"])} <= shared
    far = [key for key in shared if disagreements(first[key], again[key])]
    assert len(far) <= len(shared) / 100
