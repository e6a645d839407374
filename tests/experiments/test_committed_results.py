"""The committed results of the experiments: whole, honestly tuned, and one cell of each remade.

Another processor or PyTorch adds in another order, and training makes that larger; the tolerances
below are what we promise.
"""

import dataclasses
import math
import os
from functools import cache
from statistics import fmean

import pytest

from pilcro.data import is_fetched
from pilcro.experiments import lab, results, tables, tuning
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
# Factors between the roughnesses of the trained networks. That of a small ResNet comes back as a
# mean over seeds.
ROUGHNESS = {"small_cnn": 4 / 3, "position_cnn": 4 / 3, "small_resnet": 3.0}
OF_TEN_SEEDS = 1.25
CLOSE = (  # of the small CNN
    *("accuracy", "accuracy in noise", "accuracy corrupted", "accuracy everywhere"),
    *("area under the curve", "calibration error"),
)
SHARES = (*CLOSE, "coverage", "attribution spread", "neuron coverage")
MISSING = {"small_cnn": 0.01, "small_resnet": 0.05}  # shares of runs


@pytest.fixture(scope="module", params=FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def stored(request):
    return Results(request.param)


def experiments(stored):
    """Those whose runs the file may hold."""
    name = stored.path.stem
    return [found[name] for found in ROUNDS[stored.path.parent.name] if name in found]


@cache
def repeated(file):
    """The records that a file of ``again`` repeats, or a part of them."""
    paths = [results.folder() / folder / file for folder in ("lab", "second_round")]
    return {key: record for path in paths for key, record in Results(path).records.items()}


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
        assert record["provenance"]["modified"] is False


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
        allowed = [tuning.best_trial(experiment, setting, method, stored.records)]
        if stored.path.parent.name == "again":  # it may have kept the choice of what it repeats
            allowed.append(
                tuning.best_trial(experiment, setting, method, repeated(stored.path.name))
            )
        held_out = dataclasses.replace(setting, seed=run.seed, evaluate_on="test")
        assert run in [dataclasses.replace(held_out, **trial) for trial in allowed]
        assert run.seed in experiment.test_seeds
        tuning.refuse_second_look(run, stored.records.values())


def test_tiers_are_whole():
    for tier in ("lab", "neighbours"):  # full needs a graphics card
        for name in lab.TIERS[tier]:
            experiment = lab.EXPERIMENTS[name]
            records = Results(results.folder() / tier / f"{name}.jsonl").records
            entries = lab.trials(experiment) + tuning.finals(experiment, records)
            assert records.keys() == {run.key for _, run in entries}


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
    factor = math.exp(abs(log_roughness(one) - log_roughness(other)))
    if factor > ROUGHNESS[one["network"]]:
        found.append("roughness")
    if other["landscape"]["start"] != pytest.approx(one["landscape"]["start"], rel=0.01):
        found.append("landscape before training")
    return found


def log_roughness(record):
    return math.log(record["landscape"]["end"]["roughness"])


def test_one_type_of_machine_gives_the_same_numbers():
    """Experiments share runs and rounds share trials: they were made in other sweeps, on other
    days."""
    made = {}
    for path in FILES:
        for key, record in Results(path).records.items():
            how = record["provenance"]
            shorter = how.get("instructions") == "AVX2"  # early records have the processor's own
            made.setdefault((key, how["cpu"], how["torch"], shorter), []).append(record)
    again = [records for records in made.values() if len(records) > 1]
    assert {records[0]["network"] for records in again} >= {"small_cnn", "small_resnet"}
    assert len(again) > 400
    for first, *others in again:
        assert all(numbers(other) == numbers(first) for other in others), first["key"]


def numbers(record):
    """All that came out, but for the times."""
    curves = {name: x for name, x in record["curves"].items() if "seconds" not in name}
    return curves, record["landscape"], record["metrics"]


@pytest.fixture(scope="module", params=["small_cnn", "small_resnet"])
def twice(request):
    """Pairs of records of the same runs: on processors of two makes, or with shorter vector
    instructions."""
    first, again = (
        {
            key: record
            for path in sorted((results.folder() / folder).glob("*.jsonl"))
            for key, record in Results(path).records.items()
            if record["network"] == request.param
        }
        for folder in ("lab", "again")
    )
    if request.param == "small_cnn":  # the whole of a sweep
        trials = lab.trials(lab.EXPERIMENTS["fashion_cnn"])
        assert {run.key for _, run in trials} <= first.keys() & again.keys()
    return [(first[key], again[key]) for key in first.keys() & again.keys()]


def test_runs_come_back(twice):
    assert len(twice) >= 100
    far = [one for one, other in twice if disagreements(one, other)]
    assert len(far) <= MISSING[twice[0][0]["network"]] * len(twice)


def test_means_over_seeds_come_back(twice):
    groups = {}
    for one, other in twice:
        if one["config"]["evaluate_on"] == "test":
            groups.setdefault((one["dataset"], one["method"]), []).append((one, other))
    assert groups
    for pairs in groups.values():
        assert len(pairs) == 10
        change = fmean(log_roughness(one) - log_roughness(other) for one, other in pairs)
        assert math.exp(abs(change)) < OF_TEN_SEEDS
        for name in SHARES:
            both = [[tables.METRICS[name](record) for record in pair] for pair in pairs]
            close = pairs[0][0]["network"] == "small_cnn" and name in CLOSE
            if None not in both[0]:
                change = fmean(one - other for one, other in both)
                assert abs(change) < (0.005 if close else 0.02), name


def test_a_whole_sweep_comes_back():
    """From nothing, with shorter instructions and the stored choices: the same runs on test images,
    though the trials alone would have chosen otherwise."""
    first, again = (
        Results(results.folder() / folder / "cifar10_1k_cnn.jsonl").records
        for folder in ("lab", "again")
    )
    assert {record["provenance"]["instructions"] for record in again.values()} == {"AVX2"}
    assert first.keys() == again.keys()
    assert list(tuning.overruled(lab.EXPERIMENTS["cifar10_1k_cnn"], again, first))
