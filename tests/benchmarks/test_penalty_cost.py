"""What the benchmark of the penalised step does and stores; times and memory are made up."""

import importlib

import pytest
import torch

from pilcro.experiments import results


@pytest.fixture
def script(monkeypatch):
    module = importlib.import_module("penalty_cost")
    took = {"plain": 2.0, "twin": 2.1, "backprop, quarter batch, every 4th step": 9.0}
    monkeypatch.setattr(
        module, "in_turns", lambda sides, clock: {side: [took.get(side, 3.0)] * 3 for side in sides}
    )
    monkeypatch.setattr(
        module, "peak_memory", lambda name, config, setting: 100 + 50 * (setting != "plain")
    )
    return module


def test_full_stores_each_entry_once(script, tmp_path, capsys, monkeypatch):
    path = tmp_path / "penalty.jsonl"
    monkeypatch.setattr(script, "NETWORKS", {"plain_cnn": script.NETWORKS["plain_cnn"]})
    script.main(full=True, path=path)
    script.main(full=True, path=path)
    runs = results.read(path)
    assert [run["config"]["batch"] for run in runs] == [32, 64, 128, 256]
    ratios = runs[0]["metrics"]["ratio"]
    assert ratios["twin"] == pytest.approx(1.05)
    assert ratios["backprop, quarter batch, every 4th step"] == pytest.approx(9 / 2 / 4)
    assert runs[0]["metrics"]["memory_ratio"]["twin"] == 1.5
    assert "<= 1.1" in capsys.readouterr().out


def test_without_full_nothing_is_stored(script, tmp_path, capsys):
    script.main(path=tmp_path / "penalty.jsonl")
    assert "every 4th" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_setting_trains(script, monkeypatch):
    """One optimizer step, or four where every fourth has a penalty."""
    config = {"batch": 8, "device": "cpu", "precision": "float32", "channels_last": False}
    taken = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: taken.append(self))
    for setting, (count, _) in script.penalties().items():
        script.penalised_step("plain_cnn", config, setting)()
        assert len(taken) == count, setting
        (group,) = taken[0].param_groups
        assert all(p.grad is not None and p.grad.any() for p in group["params"])
        taken.clear()


def test_the_peer_is_the_norm_of_the_jacobian(script):
    """With one output a projection is plus or minus one, and nothing is left to chance."""
    model = torch.nn.Linear(4, 1)
    images = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = script.jacobian_penalty(torch.Generator().manual_seed(0), model, images)
    torch.testing.assert_close(found, 0.01 / 2 * model.weight.square().sum())


def test_peak_memory_of_a_process_of_its_own():
    script = importlib.import_module("penalty_cost")
    config = {"batch": 8, "device": "cpu", "precision": "float32", "channels_last": False}
    assert script.peak_memory("plain_cnn", config, "plain") > 2**20
