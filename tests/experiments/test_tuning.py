"""The best trial is chosen, and nobody tunes on the test images."""

import dataclasses
import math

import pytest

from pilcro.experiments import lab, tuning
from pilcro.experiments.config import Method, Run
from pilcro.experiments.lab import METHODS, Experiment, trials
from pilcro.experiments.tuning import best_trial, finals

SETTING = Run("fashion_mnist_subset", 100, epochs=1)
SMALL = Experiment((SETTING,), tuning_seeds=(0, 1), test_seeds=(100, 101))


def records(accuracy):
    """Of all trials, with an accuracy that the caller chooses; None stands for a divergence."""
    found = {}
    for method, run in trials(SMALL):
        value = accuracy(method, run)
        metrics = {"diverged_in_epoch": 1} if value is None else {"validation_accuracy": value}
        found[run.key] = {"config": run.as_dict(), "metrics": metrics}
    return found


def test_the_best_trial_runs_on_held_out_seeds():
    best = {method: index % 6 for index, method in enumerate(METHODS)}

    def accuracy(method, run):
        trial = METHODS[method].index(
            next(t for t in METHODS[method] if dataclasses.replace(run, **t) == run)
        )
        return 0.9 if trial == best[method] else 0.5

    entries = finals(SMALL, records(accuracy))
    assert len(entries) == len(METHODS) * 2
    for method, run in entries:
        assert run.evaluate_on == "test"
        assert run.seed in (100, 101)
        assert dataclasses.replace(run, **METHODS[method][best[method]]) == run


def test_best_by_the_mean_over_seeds():
    def accuracy(method, run):  # the second trial wins one seed by far, and loses on average
        rates = [trial["learning_rate"] for trial in METHODS["none"]]
        return {0: (0.6, 0.6), 1: (0.9, 0.2)}.get(rates.index(run.learning_rate), (0.1, 0.1))[
            run.seed
        ]

    done = {}
    for _, run in trials(lab.narrowed(SMALL, methods=["none"])):
        done[run.key] = {"metrics": {"validation_accuracy": accuracy("none", run)}}
    assert best_trial(SMALL, SETTING, "none", done) == METHODS["none"][0]


def test_a_diverged_trial_loses():
    done = records(lambda method, run: None if run.learning_rate < 0.1 else 0.2)
    for method, run in finals(SMALL, done):
        assert run.learning_rate >= 0.1, method


def test_a_missing_trial_is_an_error():
    done = records(lambda method, run: 0.5)
    done.popitem()
    with pytest.raises(KeyError):
        finals(SMALL, done)


def favouring(rate):
    """Records of all trials, those at this rate a little better."""
    return records(lambda method, run: 0.5 + 0.001 * (run.learning_rate == rate))


def test_an_earlier_choice_stands():
    here, before = favouring(0.1), favouring(0.02)
    assert {run.learning_rate for _, run in finals(SMALL, here)} == {0.1}
    assert {run.learning_rate for _, run in finals(SMALL, here, before)} == {0.02}
    assert list(tuning.overruled(SMALL, here, here)) == []
    lines = list(tuning.overruled(SMALL, here, before))
    assert len(lines) == len(METHODS)
    assert lines[0] == (
        "none, fashion_mnist_subset: learning_rate 0.1, not 0.02, would be better here by 0.0010 "
        "in validation accuracy; the choice of the stored results stands"
    )


def test_no_choice_is_taken_from_other_trials():
    """Where one trial of a method is missing, or had another setting, the choice is made anew."""
    here, before = favouring(0.1), favouring(0.02)
    _, gone = trials(lab.narrowed(SMALL, methods=["¶ log"]))[3]
    del before[gone.key]
    entries = finals(SMALL, here, before)
    assert {run.learning_rate for method, run in entries if method == "¶ log"} == {0.1}
    assert {run.learning_rate for method, run in entries if method != "¶ log"} == {0.02}


def test_an_earlier_choice_does_not_replace_a_trial():
    done = favouring(0.1)
    done.popitem()
    with pytest.raises(KeyError):
        finals(SMALL, done, favouring(0.02))


def test_tuning_cannot_see_test_accuracies():
    """Somebody slips test records with other numbers under the same settings."""
    done = records(lambda method, run: 0.5)
    honest = finals(SMALL, done)
    for _, run in trials(SMALL):
        cheat = dataclasses.replace(run, evaluate_on="test")
        score = math.tanh(run.learning_rate)
        metrics = {"validation_accuracy": score, "accuracy": score}
        done[cheat.key] = {"config": cheat.as_dict(), "metrics": metrics}
    assert finals(SMALL, done) == honest


def test_a_second_look_at_the_test_images_is_refused():
    run = Run(evaluate_on="test", method=Method("objective", 0.01))
    looked = {"config": run.as_dict()}
    for change in (
        {"method": Method("objective", 0.02)},
        {"learning_rate": 0.2},
        {"epochs": 3},
        {"batch": 32},
        {"optimiser": "adamw"},
        {"method": Method("objective", 0.01, fraction=0.5)},
    ):
        again = dataclasses.replace(run, **change)
        with pytest.raises(ValueError, match=r"looked at the test images already.*seed 0"):
            tuning.refuse_second_look(again, [looked])
    for other in (
        run,
        dataclasses.replace(run, seed=1),
        dataclasses.replace(run, evaluate_on="validation", epochs=3),
        dataclasses.replace(run, method=Method("objective", 0.01, form="raw")),
        dataclasses.replace(run, method=Method()),
        dataclasses.replace(run, network="small_resnet"),
        dataclasses.replace(run, images=2000),
        dataclasses.replace(run, change="rank 2"),
        dataclasses.replace(run, drop=0.1),
    ):
        tuning.refuse_second_look(other, [looked])


def test_weight_decay_is_a_method_of_its_own():
    plain = {"config": Run(evaluate_on="test").as_dict()}
    tuning.refuse_second_look(Run(evaluate_on="test", weight_decay=1e-3), [plain])
    decayed = {"config": Run(evaluate_on="test", weight_decay=1e-3).as_dict()}
    with pytest.raises(ValueError, match=r"weight_decay 0\.01, not 0\.001"):
        tuning.refuse_second_look(Run(evaluate_on="test", weight_decay=1e-2), [decayed])
