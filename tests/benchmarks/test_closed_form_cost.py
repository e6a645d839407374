"""What the cost benchmark stores and prints; the times are made up."""

import importlib

import pytest

from pilcro import UnsupportedOperation
from pilcro.experiments import results
from pilcro.experiments.torchvision_models import family, names


@pytest.fixture
def script(monkeypatch):
    """Measures nothing: the closed form takes a tenth more of the training time for each run."""
    module = importlib.import_module("closed_form_cost")
    module.asked = []

    def in_turns(sides):
        module.asked.append(list(sides))
        took = len(module.asked) / 10
        return {"training": [2.0] * 3, "expected": [took] * 3, "drawn": [2 * took] * 3}

    monkeypatch.setattr(module, "in_turns", in_turns)
    return module


def test_full_stores_each_entry_once(script, tmp_path, capsys):
    path = tmp_path / "cost.jsonl"
    script.main(("squeezenet1_1",), full=True, path=path)
    assert len(results.read(path)) == 1
    script.main(("squeezenet1_1", "efficientnet_b1"), full=True, path=path)
    runs = results.read(path)
    assert [(run["network"], run["config"]["image_size"]) for run in runs] == [
        ("squeezenet1_1", 224),
        ("efficientnet_b1", 224),
        ("efficientnet_b1", 240),
    ]
    assert [run["metrics"]["ratio"]["expected"] for run in runs] == pytest.approx([0.05, 0.1, 0.15])
    assert runs[1]["metrics"]["parameters"] == 7794184
    last = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[-4:] for line in last] == [
        ["0.05", "yes", "0.1", "yes"],
        ["0.10", "yes", "0.2", "yes"],
        ["0.15", "no", "0.3", "yes"],
    ]


def test_without_full_nothing_is_stored(script, tmp_path, capsys):
    script.main(("squeezenet1_1",), path=tmp_path / "cost.jsonl")
    assert "squeezenet1_1" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_short_run_has_every_family(script):
    assert {family(name) for name, _ in script.one_of_each_family()} == set(map(family, names()))


def test_a_model_without_rules_is_named(script, tmp_path, monkeypatch, capsys):
    def measure(name, size):
        raise UnsupportedOperation("no second-moment rule for torch.fft")

    monkeypatch.setattr(script, "measure", measure)
    script.main(("resnet18",), full=True, path=tmp_path / "cost.jsonl")
    assert "resnet18: no second-moment rule for torch.fft" in "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())
