"""Tables say what is in the runs, and verdicts follow the data."""

import json

import pytest
import torch

from pilcro.experiments import results
from pilcro.experiments.config import Run
from pilcro.experiments.statistics import verdict
from pilcro.experiments.tables import METRICS, by_seed, compared, finals, overview, reaching

SETTINGS = [("cifar10", "small_cnn"), ("cifar10", "small_resnet"), ("fashion_mnist", "small_cnn")]


def run(method, seed, accuracy, dataset="cifar10", network="small_cnn", part="test"):
    config = Run(dataset, 1000, network, seed=seed, evaluate_on=part, epochs=2)
    return {
        "experiment": "made up",
        "dataset": dataset,
        "network": network,
        "method": method,
        "seed": seed,
        "key": f"{config.key} {method}",
        "config": config.as_dict(),
        "curves": {"accuracy": [0.1, accuracy], "processor_seconds": [1.0, 3.0]},
        "landscape": {"end": {"roughness": 2.0}},
        "metrics": {"accuracy": accuracy},
        "provenance": {},
    }


def experiment(effect, generator, settings=SETTINGS, seeds=10):
    """Two methods: seeds differ by 2 points, runs by another one, the methods by ``effect``."""
    runs = []
    for dataset, network in settings:
        base = 0.5 + 0.02 * torch.randn(seeds, generator=generator)
        for method, gain in (("none", 0.0), ("¶ log", effect)):
            values = base + gain + 0.01 * torch.randn(seeds, generator=generator)
            runs += [
                run(method, seed, float(value), dataset, network)
                for seed, value in enumerate(values)
            ]
    return runs


def verdicts(effect, repeats=60):
    generator = torch.Generator().manual_seed(5)
    return [
        verdict(compared(experiment(effect, generator), METRICS["accuracy"], "¶ log"))
        for _ in range(repeats)
    ]


def test_a_known_effect_is_reproduced():
    """Three cells, in each an effect of 2.1 deviations of the differences: rarely missed."""
    assert verdicts(0.03).count("reproduced") > 45


def test_no_effect_is_not_reproduced():
    """A false alarm in any cell once in forty experiments (5 %, half of it on the wrong side)."""
    found = verdicts(0.0)
    assert found.count("reproduced") == 0
    assert found.count("not reproduced") > 52


def test_harm_is_not_reproduced():
    assert verdicts(-0.03, repeats=5) == ["not reproduced"] * 5


def test_an_effect_in_one_cell_depends():
    generator = torch.Generator().manual_seed(6)
    runs = experiment(0.05, generator, SETTINGS[:1]) + experiment(0.0, generator, SETTINGS[1:])
    found = compared(runs, METRICS["accuracy"], "¶ log")
    assert verdict(found) == "depends"
    assert found["CIFAR-10, 1,000 images, small CNN"].low > 0.03


def test_pairs_share_their_seed():
    runs = [run("none", seed, 0.4 + seed / 100) for seed in (3, 1, 2)]
    runs += [run("¶ log", seed, 0.45 + seed / 100) for seed in (1, 2, 3, 4)]
    found = compared(runs, METRICS["accuracy"], "¶ log")
    (only,) = found.values()
    assert only.pairs == 3
    assert only.difference == pytest.approx(0.05)
    assert only.high - only.low < 1e-9


def diverged(method, seed, dataset="cifar10"):
    made = run(method, seed, 0.5, dataset)
    curves = {"accuracy": [0.2], "processor_seconds": [1.0]}
    return made | {"metrics": {"diverged_in_epoch": 1}, "landscape": {}, "curves": curves}


def test_a_run_that_diverged_counts_as_one_that_guesses():
    """Nine good runs and a diverged one are not ten good ones."""
    runs = [run(method, seed, 0.5) for method in ("none", "¶ log") for seed in range(4)]
    runs[-1] = diverged("¶ log", 3)
    (only,) = compared(runs, METRICS["accuracy"], "¶ log").values()
    assert only.pairs == 4
    assert only.difference == pytest.approx((0.1 - 0.5) / 4)


@pytest.mark.parametrize("dataset", ["cifar10", "scenes_centred"])
def test_what_a_run_that_diverged_has(dataset):
    found = {name: metric(diverged("none", 0, dataset)) for name, metric in METRICS.items()}
    guessed = {name for name, value in found.items() if value == 0.1}
    of_places, of_others = {"accuracy everywhere"}, {"accuracy in noise", "accuracy corrupted"}
    assert guessed == {"accuracy"} | (of_places if dataset.startswith("scenes") else of_others)
    assert found["area under the curve"] == pytest.approx((0.2 + 0.1) / 2)
    assert {name for name, value in found.items() if value is None} == {
        *("calibration error", "roughness", "coverage", "attribution spread", "neuron coverage"),
        *(of_others if dataset.startswith("scenes") else of_places),
    }
    assert reaching(0.3)(diverged("none", 0)) == 3
    assert reaching(0.3, "processor_seconds")(diverged("none", 0)) == 3


def test_too_few_pairs_are_no_comparison():
    runs = [run(method, seed, 0.5) for method in ("none", "¶ log") for seed in range(2)]
    assert compared(runs, METRICS["accuracy"], "¶ log") == {}


def test_until_a_target():
    made = run("none", 0, 0.6)
    made["curves"] = {"accuracy": [0.2, 0.5, 0.7], "processor_seconds": [1.0, 2.0, 3.0]}
    made["config"]["epochs"] = 3
    assert [reaching(t)(made) for t in (0.1, 0.5, 0.6, 0.8)] == [1, 2, 3, 4]
    assert reaching(0.5, "steps")(made) == 2 * (1000 // 64)
    assert reaching(0.6, "processor_seconds")(made) == 6
    assert reaching(0.8, "processor_seconds")(made) == 8
    with pytest.raises(ValueError, match="per must be one of epochs, steps, processor_seconds"):
        reaching(0.8, "hours")


def write(path, runs):
    for each in runs:
        results.append(path, each)


def test_only_test_images_count_and_each_run_once(tmp_path):
    path = tmp_path / "runs.jsonl"
    kept = run("none", 1, 0.5)
    write(path, [run("none", 0, 0.9, part="validation"), kept, kept | {"seed": 77}])
    assert [each["seed"] for each in finals(path)] == [1]


def test_different_runs_are_not_taken_for_one():
    """Trained by hand, with another number of epochs, say."""
    one = run("none", 1, 0.5) | {"key": "a"}
    by_seed([one, one], METRICS["accuracy"])
    with pytest.raises(ValueError, match="two different runs of none have seed 1, a and b"):
        by_seed([one, one | {"key": "b"}], METRICS["accuracy"])


def test_overview(tmp_path):
    path = tmp_path / "runs.jsonl"
    write(path, experiment(0.03, torch.Generator().manual_seed(0), SETTINGS[:1]))
    text = overview(path, ["accuracy", "calibration error"])
    assert "CIFAR-10, 1,000 images, small CNN: accuracy" in text
    assert "calibration error" not in text  # nobody has one
    line = next(line for line in text.splitlines() if "¶ log" in line).split()
    assert line[2] == "10"
    assert float(line[4]) == pytest.approx(0.03, abs=0.02)


def test_overview_of_trials_alone(tmp_path):
    path = tmp_path / "runs.jsonl"
    write(path, [run("none", 0, 0.9, part="validation")])
    assert "no runs on test images yet" in overview(path)


def test_overview_of_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        overview(tmp_path / "nothing.jsonl")
    path = tmp_path / "zoo.jsonl"
    path.write_text(json.dumps(dict.fromkeys(results.KEYS)) + "\n")
    with pytest.raises(ValueError, match="line 1, is not the record of a run"):
        overview(path)
