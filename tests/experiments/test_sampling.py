"""How a closed form is held against samples: the noise is taken for what it is."""

import math

import pytest
import torch
from torch import nn

from pilcro import closed_form
from pilcro.experiments import sampling
from pilcro.experiments.sampling import agreement, sample


@pytest.fixture
def truth(generator):
    """Blocks of 4x4 pixels, so that pooling changes nothing."""
    blocks = torch.rand(32, 32, generator=generator, dtype=torch.float64) + 1
    return blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)


def noisy(truth, sigma, parts, generator):
    """Estimates with noise that differs from block to block."""
    shape = (parts, *(n // 4 for n in truth.shape))
    noise = sigma * torch.randn(shape, generator=generator, dtype=torch.float64)
    return list(truth + noise.repeat_interleave(4, 1).repeat_interleave(4, 2))


@pytest.mark.parametrize("parts", [2, 10])
def test_the_true_map_reaches_the_ceiling_and_no_more(truth, parts, generator):
    found = agreement(truth, noisy(truth, 0.5, parts, generator))
    signal, noise = truth.var(), 0.25 / parts
    assert found["ceiling"] == pytest.approx(float((signal / (signal + noise)) ** 0.5), abs=0.03)
    assert found["correlation"] == pytest.approx(found["ceiling"], abs=0.03)
    assert found["difference"] == pytest.approx(found["standard_error"], rel=0.15)
    assert found["standard_error"] == pytest.approx(
        0.5 / math.sqrt(parts) / float(truth.mean()), rel=0.1
    )


def test_another_map_stays_below_the_ceiling(truth, generator):
    found = agreement(truth.flip(0), noisy(truth, 0.1, 4, generator))
    assert found["ceiling"] > 0.95
    assert abs(found["correlation"]) < 0.2
    assert found["difference"] > 3 * found["standard_error"]


def test_the_level_is_apart_from_the_shape(truth, generator):
    parts = noisy(truth, 0.1, 4, generator)
    one, three = agreement(truth, parts), agreement(3 * truth, parts)
    assert three["level"] == pytest.approx(3 * one["level"])
    assert one["level"] == pytest.approx(1, abs=0.01)
    for name in ("correlation", "ceiling", "difference", "standard_error"):
        assert three[name] == pytest.approx(one[name])


def test_estimates_that_contradict_each_other_set_no_ceiling(truth):
    assert agreement(truth, [truth, 3 - truth])["ceiling"] is None


def test_a_flat_closed_form(truth):
    assert agreement(torch.ones_like(truth), [truth, truth])["correlation"] == 0


def test_samples_are_independent_and_repeatable(generator):
    def build():
        return nn.Conv2d(3, 8, 3)

    parts = sample(build, 8, parts=3, inputs=1, generator=generator)
    again = sample(build, 8, parts=3, inputs=1, generator=torch.Generator().manual_seed(0))
    maps = [part.importance for part in parts]
    assert all(torch.equal(a, b.importance) for a, b in zip(maps, again, strict=True))
    assert not torch.equal(maps[0], maps[1])


def test_an_exact_closed_form_differs_by_noise_alone(generator):
    def build():
        return nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8))

    def built():
        model = build()
        model(torch.zeros(1, 3, 24, 24))
        return model

    closed = closed_form(built(), 24)
    parts = sample(built, 24, parts=60, inputs=2, generator=generator)
    found = agreement(closed.importance, [part.importance for part in parts])
    assert closed.exact
    assert found["difference"] < 1.6 * found["standard_error"]
    assert found["level"] == pytest.approx(1, abs=0.1)


def test_time_runs_out(monkeypatch, generator):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(sampling.time, "monotonic", lambda: next(now))
    parts = sample(
        lambda: nn.Conv2d(3, 1, 3), 4, parts=50, inputs=1, seconds=25.0, generator=generator
    )
    assert len(parts) == 4  # asked at 10, 20, 30 seconds once there are two
    parts = sample(
        lambda: nn.Conv2d(3, 1, 3), 4, parts=50, inputs=1, seconds=0.0, generator=generator
    )
    assert len(parts) == 2


def test_what_4x4_pixels_average_to_nothing_is_not_compared(truth):
    stripes = torch.tensor([1.0, -1.0]).repeat(64).double()
    found = agreement(truth + stripes, [truth - stripes, truth])
    assert found["correlation"] == pytest.approx(1)
    assert found["difference"] == pytest.approx(0, abs=1e-12)
