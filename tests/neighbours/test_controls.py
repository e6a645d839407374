"""The plain controls: as many weights in a convolution, and coordinates as channels."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from pilcro import closed_form
from pilcro.neighbours import CoordinateChannels, wide_filters


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20))
def test_as_many_weights_as_a_low_rank_layer_and_the_next(channels, filters, rank):
    """In multiples of the kernel's size; one filter more would be too many."""
    want = channels * rank * filters + filters * filters

    def have(width):
        return channels * width + width * filters

    width = wide_filters(channels, filters, rank)
    assert have(width) <= want < have(width + 1)
    assert channels * wide_filters(channels, filters, rank, last=True) == channels * rank * filters


def test_rank_one_is_no_wider():
    """Where a quotient of floats may fall short of a whole number."""
    for channels in range(1, 100):
        for filters in range(1, 100):
            assert wide_filters(channels, filters, 1) == filters


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4, 2), ValueError, "in_channels must be at least 1, got 0"),
        ((4, 2.0, 2), TypeError, "filters must be an int, got 2.0"),
        ((4, 4, 0), ValueError, "rank must be at least 1, got 0"),
    ],
)
def test_no_filters(as_a_user, arguments, error, message):
    with pytest.raises(error, match=message):
        wide_filters(*arguments)


def test_coordinates():
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    out = CoordinateChannels()(images)
    assert out.dtype == torch.float64
    assert torch.equal(out[:, :3], images)
    for i in range(5):
        for j in range(4):
            want = torch.tensor([-1 + i / 2, -1 + 2 * j / 3]).double()
            torch.testing.assert_close(out[:, 3:, i, j], want.expand(2, -1))


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_coordinates_add_nothing_to_a_linear_network(weights):
    """The image's own channels are read as before."""
    both = nn.Conv2d(5, 4, 3, stride=2)
    alone = nn.Conv2d(3, 4, 3, stride=2)
    alone.weight.data.copy_(both.weight[:, :3])
    if weights == "expected":
        nn.init.constant_(both.weight, 1)
        nn.init.constant_(alone.weight, 1)
    found = closed_form(nn.Sequential(CoordinateChannels(), both), 8, weights=weights)
    want = closed_form(alone, 8, weights=weights)
    assert found.exact
    torch.testing.assert_close(found.importance, want.importance)
