"""The landscape of one unit reaches exactly as far as receptive-field arithmetic says.

The numbers written out are published ones (Araujo, Norris and Sim, Distill 2019): size, stride,
padding; the layers between follow from the recurrence of the same article.
"""

import pytest
import torch
import torchvision
from torch import nn

from pilcro import closed_form

INCEPTION = {
    "Mixed_5b": (63, 8, 18),
    "Mixed_5d": (127, 8, 50),
    "Mixed_6a": (159, 16, 58),
    "Mixed_6e": (927, 16, 442),
    "Mixed_7a": (1055, 32, 490),
    "Mixed_7b": (1183, 32, 554),
    "Mixed_7c": (1311, 32, 618),
}


def assert_support(net: nn.Module, field: tuple[int, int, int]) -> None:
    """A unit far enough from the border sees exactly its receptive field, on either axis."""
    size, stride, padding = field
    unit = -(-padding // stride) + 1
    first = unit * stride - padding
    landscape = closed_form(net.eval(), first + size + 2 * stride, unit=(unit, unit))
    for axis in (0, 1):
        seen = (landscape.importance.sum(axis) > 0).nonzero().flatten().tolist()
        assert seen == list(range(first, first + size))


def receptive_field(layers: nn.Sequential) -> tuple[int, int, int]:
    """Size, stride and padding of a chain of square layers."""
    size, stride, padding = 1, 1, 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, step, pad = (
                value if isinstance(value, int) else value[0]
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            size += (kernel - 1) * stride
            padding += pad * stride
            stride *= step
    return size, stride, padding


@pytest.mark.parametrize("conv", range(13))
def test_vgg16(conv):
    features = torchvision.models.vgg16(weights=None).features
    place = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)][conv]
    assert_support(features[: place + 1], receptive_field(features[: place + 1]))


@pytest.mark.parametrize(
    ("name", "field"),
    [("vgg11", (150, 32, 59)), ("vgg16", (212, 32, 90)), ("alexnet", (195, 32, 66))],
)
def test_all_features(name, field):
    assert_support(torchvision.models.get_model(name, weights=None).features, field)


@pytest.mark.parametrize("block", INCEPTION)
def test_inception(block):
    net = torchvision.models.inception_v3(weights=None, init_weights=True)
    layers = [(name, layer) for name, layer in net.named_children() if name != "AuxLogits"]
    names = [name for name, _ in layers]
    upto = nn.Sequential(*(layer for _, layer in layers[: names.index(block) + 1]))
    assert_support(upto, INCEPTION[block])


def test_one_unit_of_many():
    """All units together are the whole landscape."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    units = [
        closed_form(net, 9, channels=1, unit=(row, column)).importance
        for row in range(4)
        for column in range(4)
    ]
    whole = closed_form(net, 9, channels=1).importance
    torch.testing.assert_close(torch.stack(units).mean(0), whole)


@pytest.mark.parametrize(
    ("unit", "error", "message"),
    [
        (3, TypeError, "unit must be a pair of ints"),
        ((1.0, 2), TypeError, "unit must be a pair of ints"),
        ((0, 0, 0), TypeError, "unit must be a pair of ints"),
        ((0, 7), ValueError, r"unit must lie within the \(7, 7\) output, got \(0, 7\)"),
        ((-1, 0), ValueError, "unit must lie within"),
    ],
)
def test_bad_units(as_a_user, unit, error, message):
    with pytest.raises(error, match=message):
        closed_form(nn.Conv2d(1, 1, 3), 9, channels=1, unit=unit)


def test_a_unit_needs_a_map():
    net = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    with pytest.raises(ValueError, match=r"unit needs a model that returns .* got shape \(1, 2\)"):
        closed_form(net, 9, channels=1, unit=(0, 0))
