"""A sweep in this process, with workers of its own. What kills them: test_sweep_faults.py."""

import dataclasses
import os

import pytest
from distributed import LocalCluster

from pilcro.experiments import lab, results
from pilcro.experiments.config import Run
from pilcro.experiments.stored import Results
from pilcro.experiments.sweep import connected, sweep, workers_with
from pilcro.experiments.train import train

SETTING = Run(images=100, epochs=2, batch=20)


@pytest.fixture
def small(monkeypatch):
    experiments = {"small": lab.Experiment((SETTING,), (0,), (100, 101))}
    monkeypatch.setattr(lab, "EXPERIMENTS", experiments)
    monkeypatch.setitem(lab.METHODS, "none", [{"learning_rate": rate} for rate in (0.01, 0.1)])


def test_trials_and_then_the_best_of_them_on_test_images(small, tmp_path, capsys):
    sweep("small", folder=tmp_path, methods=["none"], workers=2)
    records = list(Results(tmp_path / "small.jsonl").records.values())
    configs = [Run.from_dict(record["config"]) for record in records]
    assert [run.evaluate_on for run in configs] == ["validation"] * 2 + ["test"] * 2
    best = max(records[:2], key=lambda record: record["metrics"]["validation_accuracy"])
    assert {run.learning_rate for run in configs[2:]} == {best["config"]["learning_rate"]}
    assert {run.seed for run in configs[2:]} == {100, 101}
    assert records[0]["curves"]["loss"] == train(configs[0])["curves"]["loss"]
    assert capsys.readouterr().out == ""
    sweep("small", folder=tmp_path, methods=["none"])
    assert capsys.readouterr().out == f"small: complete in {tmp_path}\n"


@pytest.mark.parametrize("choose_anew", [False, True])
def test_the_choice_of_the_shipped_results_stands(
    small, tmp_path, capsys, monkeypatch, choose_anew
):
    """Another processor found the other trial better, by a hair."""
    monkeypatch.setitem(lab.TIERS, "lab", ("small",))
    monkeypatch.setattr(results, "folder", lambda: tmp_path / "shipped")
    there = Results(tmp_path / "shipped/lab/small.jsonl")
    for method, run in lab.trials(lab.narrowed(lab.EXPERIMENTS["small"], methods=["none"])):
        record = train(run)
        record["metrics"]["validation_accuracy"] = float(run.learning_rate == 0.01)
        there.add("small", method, record)
    here = tmp_path / "small.jsonl"
    sweep("small", folder=tmp_path, methods=["none"], workers=1, choose_anew=choose_anew)
    tested = [
        record["config"]["learning_rate"]
        for record in Results(here).records.values()
        if record["config"]["evaluate_on"] == "test"
    ]
    line = "small: none, fashion_mnist_subset: learning_rate 0.1, not 0.01, would be better here"
    assert (line in capsys.readouterr().err) is not choose_anew
    assert tested == [0.1, 0.1] if choose_anew else tested == [0.01, 0.01]


def test_unknown_names(small, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of small, lab, neighbours, full; got large"):
        sweep("large", folder=tmp_path)
    with pytest.raises(ValueError, match=r"method must be one of none, .*; got magic"):
        sweep("small", folder=tmp_path, methods=["magic"])
    assert list(tmp_path.iterdir()) == []


def test_a_tier_makes_no_run_of_experiments_without_the_method(small, tmp_path, monkeypatch):
    other = lab.Experiment((SETTING,), (0,), (100,), {"edges": [{"learning_rate": 0.1}]})
    monkeypatch.setitem(lab.EXPERIMENTS, "other", other)
    monkeypatch.setitem(lab.TIERS, "lab", ("small", "other"))
    sweep("lab", folder=tmp_path, methods=["none"], workers=1)
    assert len(Results(tmp_path / "small.jsonl").records) == 4
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"networks": ["vgg11"]}, "small has no runs of vgg11"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "or a scheduler has its own"),
    ],
)
def test_nothing_to_do_is_said(small, tmp_path, wanted, message):
    with pytest.raises(ValueError, match=message):
        sweep("small", folder=tmp_path, **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_second_look_at_the_test_images_is_refused(small, tmp_path):
    """Somebody has run a test by hand, with settings of their own."""
    path = tmp_path / "small.jsonl"
    by_hand = dataclasses.replace(SETTING, evaluate_on="test", seed=100, learning_rate=0.05)
    Results(path).add("small", "none", train(by_hand))
    with pytest.raises(ValueError, match="has looked at the test images already"):
        sweep("small", folder=tmp_path, methods=["none"], workers=1)
    runs = [Run.from_dict(record["config"]) for record in Results(path).records.values()]
    assert [run for run in runs if run.evaluate_on == "test"] == [by_hand]


def test_workers_keep_the_memory_that_they_will_need_again(monkeypatch):
    """With the threshold that dask sets, a plain step of the small ResNet takes twice as long."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with connected(None, 1, cards=False) as client:
        found = client.run(lambda: dict(os.environ))
    (environment,) = found.values()
    assert [name for name in environment if name.startswith("MALLOC_")] == []
    assert environment["OMP_NUM_THREADS"] == "1"


def test_runs_that_need_a_card_wait_for_a_worker_that_has_one():
    for cards in (False, True):
        with connected(None, 1, cards) as client:
            assert workers_with(client, {}) == 1
            assert workers_with(client, {"GPU": 1}) == cards


def test_a_worker_with_several_threads_is_refused(small, tmp_path):
    quiet = {"dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **quiet) as cluster,
        pytest.raises(ValueError, match=r"has 2 threads.*start workers with --nthreads 1"),
    ):
        sweep("small", tmp_path, methods=["none"], scheduler=cluster.scheduler_address)
    assert Results(tmp_path / "small.jsonl").records == {}
