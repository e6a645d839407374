"""What the experiments consist of."""

import pytest

from pilcro.experiments import lab, tuning
from pilcro.experiments.config import Run
from pilcro.experiments.lab import EXPERIMENTS, Experiment, trials

SMALL = Experiment((Run("fashion_mnist_subset", 100, epochs=1),))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_equal_budget_of_tuning(name):
    experiment = EXPERIMENTS[name]
    entries = trials(experiment)
    (budget,) = {len(trials) for trials in experiment.methods.values()}
    assert budget >= 3
    for setting in experiment.settings:
        place = setting.dataset, setting.network, setting.images
        for method in experiment.methods:
            runs = [run for label, run in entries if label == method]
            mine = [r for r in runs if (r.dataset, r.network, r.images) == place]
            seeds = len(experiment.tuning_seeds)
            assert len(mine) == len({run.key for run in mine}) == budget * seeds
            assert {run.evaluate_on for run in mine} == {"validation"}
            assert {run.images for run in mine} == {setting.images}
    assert len({run.key for _, run in entries}) == len(entries)
    assert not set(experiment.tuning_seeds) & set(experiment.test_seeds)
    assert len(experiment.test_seeds) >= 10


def test_tiers_name_experiments():
    assert set(sum(lab.TIERS.values(), ())) == set(EXPERIMENTS)


def test_what_is_narrowed_is_never_widened():
    """A method that the experiment lacks leaves nothing, not everything."""
    assert trials(lab.narrowed(SMALL)) == trials(SMALL)
    assert {method for method, _ in trials(lab.narrowed(SMALL, methods=["none"]))} == {"none"}
    for nothing in ({"methods": ["SGDrop"]}, {"networks": ["vgg11"]}):
        assert trials(lab.narrowed(SMALL, **nothing)) == []
        assert tuning.finals(lab.narrowed(SMALL, **nothing), {}) == []
