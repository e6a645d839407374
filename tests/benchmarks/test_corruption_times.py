"""The benchmark of the corruptions compares like with like; the times are made up."""

import importlib

import numpy as np
import pytest
import torch

from pilcro.experiments.corruptions import SEVERITIES, corrupt

LEVELS = {"jpeg": 8, "pixelate": 2}  # of 255, that rounding may make; otherwise one


@pytest.fixture
def script():
    return importlib.import_module("corruptions")


@pytest.fixture
def levels():
    ramp = torch.arange(32)[:, None] * 3 + torch.arange(32) * 4
    return torch.stack([ramp, ramp.mT, 250 - ramp])[None].byte().contiguous()


def by_the_field(script, levels, kind, severity):
    random, strength = np.random.default_rng(0), SEVERITIES[kind][severity - 1]
    arrays = levels.movedim(1, 3).numpy()
    changed = [script.FIELD[kind](array, strength, random) for array in arrays]
    return torch.from_numpy(np.stack(changed)).movedim(3, 1) / 255


@pytest.mark.parametrize("kind", [kind for kind in SEVERITIES if "noise" not in kind])
@pytest.mark.parametrize("severity", [1, 5])
def test_the_field_computes_the_same(script, levels, kind, severity):
    got = corrupt(levels / 255, kind, severity)
    field = by_the_field(script, levels, kind, severity)
    assert (got - field).abs().max() < (LEVELS.get(kind, 1) + 0.01) / 255


@pytest.mark.parametrize("kind", [kind for kind in SEVERITIES if "noise" in kind])
@pytest.mark.parametrize("severity", [1, 5])
def test_the_field_draws_the_same_noise(script, levels, kind, severity):
    many = levels.expand(128, -1, -1, -1)
    ours = (corrupt(many / 255, kind, severity) - many / 255).square().mean()
    field = by_the_field(script, many, kind, severity) - many / 255
    torch.testing.assert_close(ours, field.square().mean(), rtol=0.1, atol=0)


def test_a_line_for_each_kind(script, monkeypatch, capsys):
    took = {"batch": 2.0, "one by one": 24.0, "field": 6.0, "draws": 1.0}
    asked = []

    def in_turns(sides, clock):
        for run in sides.values():
            run()
        asked.append(set(sides))
        return {side: [took[side]] * 3 for side in sides}

    monkeypatch.setattr(script, "in_turns", in_turns)
    script.main(count=2)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(SEVERITIES)
    assert lines[0].split()[1:] == [
        "1000000.0",
        "12000000.0",
        "3000000.0",
        "500000.0",
        "12.0",
        "3.0",
    ]
    assert [("draws" in sides) for sides in asked] == [kind in script.DRAWS for kind in SEVERITIES]
