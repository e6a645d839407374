"""One training run: what it learns, what it records. Faults and resuming: test_sweep_faults.py."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from pilcro import Landscape, on_data
from pilcro.experiments.config import Method, Run
from pilcro.experiments.train import SEEN, Training, pictured, train

SMALL = Run(images=200, epochs=3, batch=50)


@pytest.fixture(scope="module")
def record():
    return train(dataclasses.replace(SMALL, evaluate_on="test"))


def test_a_record_is_json_and_names_its_run(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert Run.from_dict(record["config"]).key == record["key"]
    assert (record["dataset"], record["network"]) == ("fashion_mnist_subset", "small_cnn")
    assert {"torch", "cpu", "revision", "time"} <= record["provenance"].keys()


def test_curves_have_a_number_an_epoch(record):
    assert {len(curve) for curve in record["curves"].values()} == {3}
    assert record["curves"]["accuracy"][-1] == record["metrics"]["validation_accuracy"]
    assert min(record["curves"]["processor_seconds"]) > 0


def test_landscapes_before_during_and_after(record):
    assert list(record["landscape"]) == ["start", "middle", "end"]
    values = [found["roughness"] for found in record["landscape"].values()]
    assert len(set(values)) == 3
    assert record["landscape"]["end"]["thumbnail"].startswith("data:image/png")
    assert "thumbnail" not in record["landscape"]["start"]


def test_the_first_landscape_is_that_of_the_untrained_network(record):
    training = Training(dataclasses.replace(SMALL, evaluate_on="test"), 0, 1)
    images = training.split.standardised(training.split.validation[0][:SEEN])
    found = on_data(training.model, images, projections=10)
    assert record["landscape"]["start"]["roughness"] == pytest.approx(found.roughness, rel=1e-4)


def test_only_a_run_that_tests_has_test_metrics(record):
    assert {"accuracy", "calibration_error", "noise", "corruption"} <= record["metrics"].keys()
    assert list(train(SMALL)["metrics"]) == ["validation_accuracy"]


def test_steps_are_pytorchs_own():
    """Ten epochs written out: SGD with Nesterov momentum, one cycle of the learning rate."""
    run = Run(images=100, epochs=10, batch=40, learning_rate=0.2, weight_decay=0.01)
    training = Training(run, 0, 1)
    reference = Training(run, 0, 1).model
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    order, total, step = run.generator("order"), 10 * 2, 0
    for _ in range(10):
        rows = torch.randperm(100, generator=order)
        for batch in (rows[:40], rows[40:80]):
            up = 0.2 * total - 1  # the step at which the rate is highest
            first, last = 0.2 / 25, 0.2 / 25 / 1e4
            if step <= up:
                rate = first + (0.2 - first) * (1 - math.cos(math.pi * step / up)) / 2
            else:
                share = (1 + math.cos(math.pi * (step - up) / (total - 1 - up))) / 2
                rate = last + (0.2 - last) * share
            images, labels = training.images[batch], training.labels[batch]
            loss = F.cross_entropy(reference(images), labels)
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for p, v, g in zip(reference.parameters(), velocity, gradients, strict=True):
                    g = g + 0.01 * p
                    v.mul_(0.9).add_(g)
                    p.sub_(rate * (g + 0.9 * v))
            step += 1
        training.one_epoch()
    for p, q in zip(training.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_it_learns():
    found = train(Run(images=1000, epochs=6))
    assert found["metrics"]["validation_accuracy"] > 0.6


def test_the_objective_flattens():
    run = Run(images=500, epochs=4)
    rough = train(run)["landscape"]["end"]["roughness"]
    method = Method("objective", 0.05)
    flat = train(dataclasses.replace(run, method=method))["landscape"]["end"]["roughness"]
    assert flat < rough / 4


@pytest.mark.parametrize("network", ["resnet18", "vgg11"])
def test_the_large_networks_of_the_full_tier(network):
    run = Run(images=20, network=network, epochs=1, batch=10)
    assert math.isfinite(train(run)["curves"]["loss"][0])


def test_half_precision_is_close_to_single():
    runs = (SMALL, dataclasses.replace(SMALL, precision="bfloat16"))
    losses = [train(run)["curves"]["loss"] for run in runs]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_network_that_died_has_no_landscape():
    training = Training(SMALL, 0, 1)
    for p in training.model.parameters():
        p.data.zero_()
    training.measure_landscape()
    assert training.curves["landscape"] == [{"mean": 0.0}]


def test_a_network_that_died_is_trained_on_with_or_without_a_penalty():
    for method in (Method(), Method("objective", 0.1), Method("jacobian", 1.0)):
        training = Training(dataclasses.replace(SMALL, method=method), 0, 1)
        for p in training.model.parameters():
            p.data.zero_()
        training.one_epoch()
        assert not training.diverged
        assert training.curves["accuracy"][-1] == pytest.approx(0.1, abs=0.03)


def test_a_run_that_diverges_says_when():
    found = train(Run(images=200, epochs=5, batch=50, learning_rate=1e6))
    epoch = found["metrics"]["diverged_in_epoch"]
    assert found["metrics"] == {"diverged_in_epoch": epoch}
    assert found["curves"]["loss"][epoch - 1] is None
    assert json.dumps(found, allow_nan=False)


def test_a_step_that_ruins_the_weights_is_seen_before_the_next_loss():
    training = Training(SMALL, 0, 1)
    step = training.step

    def last_step_too_many(images, labels):
        loss = step(images, labels)
        for p in training.model.parameters():
            p.data.fill_(math.nan)
        return loss

    training.steps, training.step = 1, last_step_too_many
    training.one_epoch()
    assert training.diverged
    assert training.curves["loss"] == [None]


def test_a_landscape_that_is_zero_at_the_border_has_no_centre_bias():
    importance = torch.zeros(16, 16)
    importance[8, 8] = 1.0
    found = pictured(Landscape(importance, exact=False))
    assert found["centre_bias"] is None
    assert found["coverage"] == pytest.approx(1 / 256, rel=1e-4)
    assert json.dumps(found, allow_nan=False)


def test_each_epoch_is_reported():
    said = []
    found = train(SMALL, report=lambda epoch, accuracy: said.append((epoch, accuracy)))
    assert said == list(enumerate(found["curves"]["accuracy"], 1))


def test_threads_are_put_back():
    before = torch.get_num_threads()
    train(dataclasses.replace(SMALL, epochs=1, threads=2))
    assert torch.get_num_threads() == before
