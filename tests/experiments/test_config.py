import dataclasses
import json

import pytest
import torch

from pilcro.experiments import lab, results
from pilcro.experiments.config import Method, Run


def test_each_field_counts_in_the_key():
    run = Run(method=Method("objective", 0.1), images=500)
    others = {
        "dataset": "cifar10",
        "images": 1000,
        "network": "small_resnet",
        "flat": True,
        "method": Method("objective", 0.2),
        "seed": 1,
        "evaluate_on": "test",
        "epochs": 3,
        "batch": 32,
        "optimiser": "adamw",
        "learning_rate": 0.2,
        "weight_decay": 0.1,
        "device": "cuda",
        "precision": "bfloat16",
        "threads": 2,
        "change": "rank 2",
        "drop": 0.1,
        "dropped": "random",
    }
    assert set(others) == {field.name for field in dataclasses.fields(Run)}
    keys = {dataclasses.replace(run, **{name: value}).key for name, value in others.items()}
    assert len(keys | {run.key}) == len(others) + 1


def test_fields_that_came_later_leave_old_keys_as_they_were():
    """Keys of stored runs, whose configurations do not have the newer fields."""
    for name in lab.PART_THREE:  # the first files there were
        with (results.folder() / "lab" / f"{name}.jsonl").open() as lines:
            record = json.loads(next(lines))
        assert "drop" not in record["config"]
        assert "growth" not in record["config"]["method"]
        assert Run.from_dict(record["config"]).key == record["key"]


def test_growth_counts_where_it_does_something():
    runs = [Run(method=Method("loco", 0.1, growth=growth)) for growth in (1.0, 2.0)]
    assert runs[0].key != runs[1].key


def test_back_from_what_is_stored():
    run = Run("cifar10", 100, method=Method("jacobian", 0.5, fraction=1.0), seed=7)
    assert Run.from_dict(run.as_dict()) == run


def test_random_numbers_depend_on_seed_and_purpose_alone():
    def drawn(run, purpose):
        return torch.rand(4, generator=run.generator(purpose)).tolist()

    one = Run(seed=5)
    two = Run("cifar10", 2000, "small_resnet", True, Method("shift", 2.0), 5, "test", 3)
    assert drawn(one, "order") == drawn(two, "order")
    assert drawn(one, "order") != drawn(one, "weights")
    assert drawn(one, "order") != drawn(Run(seed=6), "order")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"images": 10, "batch": 11}, "batch is 11, but there are 10 images"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"drop": 1.0}, r"drop must lie in \[0, 1\), got 1.0"),
        ({"flat": True, "change": "local"}, "cannot be made flat and changed to 'local', too"),
        ({"flat": True, "network": "position_cnn"}, "position_cnn cannot be made flat"),
    ],
)
def test_settings_that_make_no_run(settings, message):
    with pytest.raises(ValueError, match=message):
        Run(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("plain", 0.1), "plain training has no strength, got 0.1"),
        (("objective",), "objective needs a strength above 0, got 0.0"),
        (("jacobian", -1.0), "jacobian needs a strength above 0, got -1.0"),
        (("total_variation", float("inf")), "needs a strength above 0, got inf"),
        (("shift", 1.5), "shift needs a whole number of pixels, got 1.5"),
    ],
)
def test_settings_that_make_no_method(settings, message):
    with pytest.raises(ValueError, match=message):
        Method(*settings)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_part_of_the_batch(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got"):
        Method("jacobian", 0.1, fraction=fraction)
