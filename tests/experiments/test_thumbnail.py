"""Thumbnails: small, right side up, on one scale."""

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from pilcro import Landscape
from pilcro.experiments.thumbnail import LEVELS, SIDE, TOP, importance_of, thumbnail
from pilcro.plot import COLOURS


def picture(importance):
    uri = thumbnail(Landscape(importance.double(), exact=True))
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def colour(share):
    """Of the colour bar, 0 at the bottom and 1 at the top."""
    return colormaps[COLOURS].resampled(LEVELS)(share, bytes=True)[:3]


@pytest.mark.parametrize("shape", [(224, 224), (299, 299), (50, 100), (48, 48), (32, 60)])
def test_flat_is_the_middle_of_the_scale(shape):
    found = np.asarray(picture(torch.ones(shape)).convert("RGB"))
    assert found.shape == (min(SIDE, shape[0]), min(SIDE, shape[1]), 3)
    assert (found == colour(0.5)).all()


def test_the_scale_is_common_and_clipped():
    """Four quarters: nothing, half the mean, what is left for a mean of one, 16 times the half."""
    values = torch.tensor([[0.0, 0.02], [0.5, 3.48]])
    found = np.asarray(
        picture(values.repeat_interleave(112, 0).repeat_interleave(112, 1)).convert("RGB")
    )
    corners = found[4, 4], found[4, -4], found[-4, 4], found[-4, -4]
    shares = (0, 0, 0.5 + np.log(0.5) / np.log(TOP) / 2, 0.5 + np.log(3.48) / np.log(TOP) / 2)
    for corner, share in zip(corners, shares, strict=True):
        assert (corner == colour(round(share * (LEVELS - 1)) / (LEVELS - 1))).all()


def test_fine_patterns_are_averaged_and_leave_no_beat():
    checkers = torch.eye(2).repeat(112, 112)
    values = np.asarray(picture(checkers))[2:-2, 2:-2]
    assert np.ptp(values) == 0


def test_it_is_small():
    """Also for the busiest of patterns, smooth and periodic."""
    i = torch.arange(224.0)
    wave = torch.outer(1.1 + torch.sin(i / 9), 1.1 + torch.cos(i / 7)) * (1 + (i % 16 == 0))
    uri = thumbnail(Landscape(wave.double(), exact=True))
    assert len(uri) < 1500


def test_importance_is_read_back_to_half_a_level():
    importance = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)).exp().double()
    landscape = Landscape(importance, exact=True)
    wanted = landscape.normalised.clamp(1 / TOP, TOP).log()
    got = importance_of(thumbnail(landscape)).log()
    assert got.shape == (30, 40)
    assert (got - wanted).abs().max() <= np.log(TOP) / (LEVELS - 1) + 1e-12
    assert got.aminmax() == pytest.approx((-np.log(TOP), np.log(TOP)))
