"""The report card: what it records, and that it goes on where it was interrupted."""

import pytest
import torch
from torch import nn

from pilcro import UnsupportedOperation, closed_form
from pilcro.experiments import results, zoo
from pilcro.experiments.torchvision_models import (
    COMMON_SIZE,
    cost,
    default_size,
    entries,
    family,
    initial,
    names,
)

SMALL = ("squeezenet1_1", "shufflenet_v2_x0_5")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(zoo, "PARTS", 2)
    monkeypatch.setattr(zoo, "INPUTS", 1)


def keys(path):
    return [
        (run["network"], run["config"]["image_size"], run["config"]["batch_norm"])
        for run in results.read(path)
    ]


def test_every_model_at_both_sizes():
    everything = entries()
    assert len(names()) == 80
    assert {name for name, size in everything if size == COMMON_SIZE} == set(names())
    assert {name for name, size in everything if size == default_size(name)} == set(names())
    assert len(everything) == len(set(everything))
    costs = [cost(*entry) for entry in everything]
    assert costs == sorted(costs)


def test_families_are_torchvisions():
    assert family("resnext50_32x4d") == family("wide_resnet50_2") == "resnet"
    assert len({family(name) for name in names()}) == 17


def test_networks_are_fresh(generator):
    one, two = initial("squeezenet1_1", generator), initial("squeezenet1_1", generator)
    assert not torch.equal(next(one.parameters()), next(two.parameters()))
    assert torch.equal(
        next(initial("squeezenet1_1").parameters()), next(initial("squeezenet1_1").parameters())
    )


def test_a_vision_transformer_lets_something_through():
    assert closed_form(initial("vit_b_32"), 224).importance.min() > 0


def test_the_two_files(tmp_path, quick):
    zoo.main(SMALL, folder=tmp_path)
    cheap, dear = sorted(SMALL, key=lambda name: cost(name, 224))
    assert keys(tmp_path / "landscapes.jsonl") == [(cheap, 224, "train"), (dear, 224, "train")]
    assert keys(tmp_path / "sampled.jsonl") == [
        ("shufflenet_v2_x0_5", 224, "eval"),  # the other has no batch norm
        (cheap, 224, "train"),
        (dear, 224, "train"),
    ]
    run = results.read(tmp_path / "landscapes.jsonl")[0]
    landscape = closed_form(initial(cheap), 224)
    summary = landscape.summary()
    assert {key: run["metrics"][key] for key in summary} == pytest.approx(summary)
    assert run["metrics"]["exact"] is landscape.exact is False
    assert run["config"]["family"] == "shufflenetv2"
    for reason in run["metrics"]["reasons"]:
        assert any(full.endswith(f": {reason}") for full in landscape.reasons)
        assert not reason.startswith(("conv1", "stage"))
    sampled = results.read(tmp_path / "sampled.jsonl")
    assert [run["metrics"]["networks"] for run in sampled] == [4, 4, 4]
    assert all(run["metrics"]["correlation"] > 0.3 for run in sampled[1:])
    assert sampled[0]["metrics"]["level"] != sampled[1]["metrics"]["level"]


def test_every_sampled_network_is_another(quick, monkeypatch):
    built = []
    monkeypatch.setattr(zoo, "initial", lambda *args: built.append(initial(*args)) or built[-1])
    zoo.sampled_record("squeezenet1_1", 64, "train")
    assert len(built) == 5  # one for the closed form
    assert len({next(model.parameters()).sum().item() for model in built}) == 5


def test_what_is_there_is_not_computed_again(tmp_path, quick, monkeypatch):
    zoo.main(SMALL[:1], folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    asked = []
    for name in ("landscape_record", "sampled_record"):
        compute = getattr(zoo, name)
        monkeypatch.setattr(zoo, name, lambda *a, c=compute: asked.append(a) or c(*a))
    zoo.main(SMALL, folder=tmp_path)
    assert {entry[0] for entry in asked} == {SMALL[1]}
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
        assert len(path.read_bytes()) > len(content)


def test_a_model_without_rules_is_named_and_tried_again(tmp_path, quick, monkeypatch, capsys):
    path = tmp_path / "runs.jsonl"

    def unsupported(*entry):
        raise UnsupportedOperation("no second-moment rule for torch.fft")

    zoo.complete(path, [("resnet18", 224, "train")], unsupported)
    assert "resnet18: no second-moment rule for torch.fft" in "".join(capsys.readouterr())
    assert not path.exists()
    zoo.complete(path, [("resnet18", 224, "train")], lambda *e: zoo.record(*e, "", {}, {}))
    assert keys(path) == [("resnet18", 224, "train")]


def test_what_is_not_finite_becomes_null(tmp_path, monkeypatch):
    """The centre bias of a network that reads nothing of the border."""

    class Blind(nn.Module):
        def forward(self, x):
            return x[:, :, 60:-60, 60:-60].flatten(1)

    monkeypatch.setattr(zoo, "initial", lambda name: Blind())
    zoo.complete(tmp_path / "runs.jsonl", [("alexnet", 224, "train")], zoo.landscape_record)
    metrics = results.read(tmp_path / "runs.jsonl")[0]["metrics"]
    assert metrics["centre_bias"] is None
    assert metrics["exact"] is True
    assert metrics["reasons"] == []
