"""One training run: what it learns, what it records. Faults and resuming: test_sweep_faults.py."""

import dataclasses
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from pilcro import Landscape, on_data
from pilcro.experiments import metrics
from pilcro.experiments.config import Method, Run
from pilcro.experiments.stored import Results, train_and_store
from pilcro.experiments.train import Training, pictured, train

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
    short = train(dataclasses.replace(SMALL, epochs=1))["landscape"]
    assert list(short) == ["start", "end"]
    assert "thumbnail" in short["end"]


def test_the_first_landscape_is_that_of_the_untrained_network(record):
    training = Training(dataclasses.replace(SMALL, evaluate_on="test"), 0, 1)
    images = training.split.standardised(training.split.validation[0][: metrics.SEEN])
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


def test_loco_decays_what_is_far_from_the_centre():
    runs = [SMALL, dataclasses.replace(SMALL, method=Method("loco", 0.3, growth=2.0))]
    plain, decayed = (one_epoch(run).model[0].weight.detach().square().mean((0, 1)) for run in runs)
    assert decayed[0, 0] < 0.5 * plain[0, 0]
    assert decayed[1, 1] == pytest.approx(float(plain[1, 1]), rel=0.2)


def one_epoch(run):
    training = Training(run, 0, 1)
    training.one_epoch()
    return training


def test_drop_makes_other_networks_that_are_tested_whole():
    """In training only: scores in evaluation mode come from all features."""
    models = {}
    for dropped in ("salient", "random"):
        training = one_epoch(dataclasses.replace(SMALL, drop=0.5, dropped=dropped))
        models[dropped] = training.model
        images = training.split.standardised(training.split.validation[0][:4])
        x = images
        for layer in training.model.eval():
            x = layer[1](x) if isinstance(layer, torch.nn.Sequential) else layer(x)
        torch.testing.assert_close(training.model(images), x)
    weights = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in models.values()]
    assert not torch.equal(*weights)


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


@pytest.mark.parametrize(
    "method",
    [
        Method("objective", 0.02, every=2, fraction=0.5),
        Method("objective", 0.02, estimator="twin"),
        Method("jacobian", 1.0),
        Method("total_variation", 0.01),
        Method("shift", 2.0),
        Method("loco", 1e-3),
    ],
    ids=lambda method: f"{method.name} {method.estimator}",
)
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path, method, drop):
    """An odd number of steps an epoch: a penalty every second step is in the middle of its pair."""
    run = dataclasses.replace(SMALL, images=150, method=method, drop=drop, dropped="random")
    whole = train(run)

    class StopError(Exception):
        pass

    def stop(epoch, accuracy):
        raise StopError

    file = tmp_path / "run.pt"
    with pytest.raises(StopError):
        train(run, checkpoint=file, report=stop)
    resumed = train(run, checkpoint=file)
    for found in (whole, resumed):
        for name in ("seconds", "processor_seconds"):
            assert len(found["curves"].pop(name)) == 3
    assert {**resumed, "provenance": None} == {**whole, "provenance": None}


def test_a_folder_that_another_run_takes_away_is_made_again(tmp_path, monkeypatch):
    """An empty folder of checkpoints goes with the run that ends; the next one may be saving."""
    path, saves, save = tmp_path / "runs.checkpoints" / "run.pt", [], torch.save

    def after_the_folder_went(state, to):
        saves.append(to)
        if len(saves) == 1:
            to.parent.rmdir()
        save(state, to)

    monkeypatch.setattr(torch, "save", after_the_folder_went)
    Training(Run(images=100, epochs=1, batch=50), rank=0, world=1).save(path)
    assert len(saves) == 2
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


def test_a_second_look_at_the_test_images_is_refused(tmp_path):
    run, out = Run(images=100, epochs=1, batch=50, evaluate_on="test"), tmp_path / "runs.jsonl"
    train_and_store(run, out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="has looked at the test images already"):
        train_and_store(dataclasses.replace(run, learning_rate=0.2), out)
    assert out.read_bytes() == before


def test_checkpoints_that_are_no_use(tmp_path):
    """Damaged, made to run something, or of another run."""
    run, path, trap = Run(images=100, epochs=1, batch=50), tmp_path / "run.pt", tmp_path / "trap"
    training = Training(run, rank=0, world=1)
    training.save(path)
    whole = path.read_bytes()

    class Trap:
        def __reduce__(self):
            return trap.mkdir, ()

    for content in (b"", whole[: len(whole) // 2], pickle.dumps(Trap(), 2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run.pt is no whole checkpoint; delete it"):
            training.load(path)
    assert not trap.exists()
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"belongs to another run, {run.key}; delete it"):
        Training(dataclasses.replace(run, seed=1), rank=0, world=1).load(path)


def test_nothing_is_left_of_a_run_that_is_stored(tmp_path):
    run, out = Run(images=100, epochs=1, batch=50), tmp_path / "runs.jsonl"
    left = Results(out).checkpoint(run.key).with_suffix(".99.part")
    left.parent.mkdir()
    left.write_bytes(b"killed while it saved")
    train_and_store(run, out)
    assert not left.parent.exists()


def test_threads_are_put_back():
    before = torch.get_num_threads()
    train(dataclasses.replace(SMALL, epochs=1, threads=2))
    assert torch.get_num_threads() == before
