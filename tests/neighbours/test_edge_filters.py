"""The known filters against their definitions, and the closed form behind them against all paths
and all signs of the weights."""

import itertools
import math

import hypothesis.strategies as st
import path_counting
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from networks import noise, seeded
from torch import nn

import pilcro
from pilcro.models import edge_filtered, small_cnn
from pilcro.neighbours import FILTERS, EdgeFilterConv2d

# --- the filters -----------------------------------------------------------------------------


def outer(rows, columns):
    return [[r * c for c in columns] for r in rows]


def added(a, b):
    return [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


SLOPE, SECOND, CENTRE = [-1, 0, 1], [1, -2, 1], [0, 1, 0]
DEFINED = {
    # a difference along one axis, smoothed along the other
    **{
        f"{name}_{axis}": outer(smooth, SLOPE) if axis == "x" else outer(SLOPE, smooth)
        for name, smooth in (("sobel", [1, 2, 1]), ("prewitt", [1, 1, 1]), ("scharr", [3, 10, 3]))
        for axis in "xy"
    },
    "laplacian": added(outer(SECOND, CENTRE), outer(CENTRE, SECOND)),
    "identity": outer(CENTRE, CENTRE),
}
DEFINED["sharpen"] = added(DEFINED["identity"], [[-t for t in r] for r in DEFINED["laplacian"]])
DEFINED["emboss"] = added(DEFINED["identity"], added(DEFINED["prewitt_x"], DEFINED["prewitt_y"]))


def test_the_taps_follow_from_their_definitions():
    assert {name: [list(row) for row in taps] for name, taps in FILTERS.items()} == DEFINED


def slowly(image, names, stride, padding):
    """[colour * filters + filter][row][column], one tap at a time."""
    colours, height, width = len(image), len(image[0]), len(image[0][0])
    found = []
    for colour in range(colours):
        for name in names:
            taps = DEFINED[name]
            norm = math.sqrt(sum(t * t for row in taps for t in row))
            rows = []
            for top in range(-padding, height + padding - 2, stride):
                row = []
                for left in range(-padding, width + padding - 2, stride):
                    value = 0.0
                    for a, b in itertools.product(range(3), range(3)):
                        if 0 <= top + a < height and 0 <= left + b < width:
                            value += taps[a][b] / norm * image[colour][top + a][left + b]
                    row.append(value)
                rows.append(row)
            found.append(rows)
    return torch.tensor(found, dtype=torch.float64)


subsets = st.lists(st.sampled_from(list(FILTERS)), min_size=1, unique=True)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), subsets, st.integers(1, 3), st.integers(0, 2), st.integers(3, 6),
    st.integers(3, 6),
)  # fmt: skip
def test_every_filter_on_every_colour(colours, names, stride, padding, height, width):
    layer = EdgeFilterConv2d(colours, names, stride=stride, padding=padding).double()
    image = noise(colours, height, width)
    want = slowly(image.tolist(), names, stride, padding)
    torch.testing.assert_close(layer(image[None])[0], want)
    assert layer.out_channels == len(want) == colours * len(names)
    assert layer.filters == tuple(names)


def test_all_filters_by_default():
    assert EdgeFilterConv2d(1).filters == tuple(FILTERS)


def test_white_noise_comes_through_all_filters_equally_strong():
    torch.testing.assert_close(EdgeFilterConv2d(3).weight.square().sum((1, 2, 3)), torch.ones(30))


def test_ten_filters_in_six_dimensions():
    """As the docstring says: scores of dependent filters can trade places."""
    rank = torch.linalg.matrix_rank
    assert rank(EdgeFilterConv2d(1).double().weight.flatten(1)) == 6
    four = EdgeFilterConv2d(1, ("sobel_x", "sobel_y", "laplacian", "identity"))
    assert rank(four.weight.flatten(1)) == 4
    for axis in "xy":
        three = EdgeFilterConv2d(1, [f"{name}_{axis}" for name in ("sobel", "prewitt", "scharr")])
        assert rank(three.double().weight.flatten(1)) == 2


def test_nothing_in_it_learns():
    net = edge_filtered(small_cnn(image_size=8))
    before = net[0][0].weight.clone()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    net(torch.rand(2, 1, 8, 8, generator=seeded())).square().sum().backward()
    optimizer.step()
    assert torch.equal(net[0][0].weight, before)
    assert "0.0.weight" in net.state_dict()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "in_channels must be at least 1, got 0"),
        ((1.0,), TypeError, "in_channels must be an int, got 1.0"),
        ((1, ["sobel"]), ValueError, "filters must be among sobel_x, .*; got 'sobel'"),
        ((1, []), ValueError, r"at least one name and none twice, got \[\]"),
        ((1, ["identity"] * 2), ValueError, "at least one name and none twice"),
        ((1, "identity"), TypeError, "filters must be a sequence of names, got 'identity'"),
        ((1, 3), TypeError, "filters must be a sequence of names, got 3"),
    ],
)
def test_refused(arguments, error, message, as_a_user):
    with pytest.raises(error, match=message):
        EdgeFilterConv2d(*arguments)


def test_a_stride_of_zero():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        EdgeFilterConv2d(1, stride=0)


def test_a_padding_that_is_none(as_a_user):
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        EdgeFilterConv2d(1, padding=-1)
    with pytest.raises(TypeError, match="padding must be an int or a pair of ints, got 'same'"):
        EdgeFilterConv2d(1, padding="same")


def test_it_says_what_it_is():
    shown = repr(EdgeFilterConv2d(3, ["identity"], stride=2, padding=1))
    assert shown == "EdgeFilterConv2d(3, filters=('identity',), stride=(2, 2), padding=(1, 1))"


# --- the closed form behind them -------------------------------------------------------------


def as_path_layer(layer, squared, groups):
    stride, padding = (v if isinstance(v, tuple) else (v, v) for v in (layer.stride, layer.padding))
    return path_counting.Layer(squared.tolist(), stride, padding, False, (1, 1), groups)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2), subsets,
    st.sampled_from(["expected", "drawn"]),
)  # fmt: skip
def test_landscape_is_the_sum_over_all_paths(colours, stride, padding, kernel, names, weights):
    """Fixed taps stay as they are in both weightings; learned ones are averaged if expected."""
    size = (6, 5)
    fixed = EdgeFilterConv2d(colours, names[:3], stride=stride, padding=padding).double()
    learned = nn.Conv2d(fixed.out_channels, 2, kernel, bias=False).double()
    nn.init.normal_(learned.weight, generator=seeded())
    squared = learned.weight.detach().square()
    if weights == "expected":
        squared = squared.mean().expand_as(squared)
    layers = [
        as_path_layer(fixed, fixed.weight.square(), colours),
        as_path_layer(learned, squared, 1),
    ]
    assume(path_counting.paths(layers, size) <= 20_000)
    net = nn.Sequential(fixed, learned)
    got = pilcro.closed_form(net, size, channels=colours, weights=weights)
    want = torch.tensor(path_counting.importance(layers, size)).double()
    torch.testing.assert_close(got.importance, want, rtol=1e-5, atol=1e-6 * float(want.max()))
    assert not got.exact
    assert "fixed" in got.reasons[0]


def over_all_signs(net, size):
    """The mean squared gradient of every output over all signs of all learned weights."""
    weights = list(net.parameters())
    total, kept = torch.zeros(size, dtype=torch.float64), [p.detach().clone() for p in weights]
    signs = list(itertools.product((-1.0, 1.0), repeat=sum(p.numel() for p in weights)))
    for pattern in signs:
        rest = torch.tensor(pattern, dtype=torch.float64)
        for p, value in zip(weights, kept, strict=True):
            p.data = value * rest[: p.numel()].reshape(p.shape)
            rest = rest[p.numel() :]
        jacobian = torch.func.jacrev(lambda x: net(x).flatten())(torch.zeros(1, 1, *size).double())
        total += jacobian.square().mean(0)[0, 0] / len(signs)
    for p, value in zip(weights, kept, strict=True):
        p.data = value
    return total.detach()


class Average(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.mark.parametrize("right", [True, False])
def test_over_all_signs_of_the_learned_weights(right):
    """Two filters that share their next weight at two places do not average out behind a mean: what
    the reasons warn of. In front of outputs that stay apart the closed form is right."""
    fixed = EdgeFilterConv2d(1, ["sobel_x", "emboss"], padding=1).double()
    net = nn.Sequential(
        fixed, nn.Conv2d(2, 1, (1, 2), bias=False), nn.Conv2d(1, 1, (2, 1), bias=False)
    ).double()
    if not right:
        net.append(Average())
    got = pilcro.closed_form(net, (4, 4), channels=1, weights="drawn")
    want = over_all_signs(net, (4, 4))
    assert torch.allclose(got.importance, want, rtol=1e-5) == right
    assert not got.exact


def test_against_sampled_networks():
    """The ReLUs and the flattened head of the small network; cells of 4 x 4 pixels."""

    def build():
        return edge_filtered(small_cnn(4, image_size=12))

    sampled = pilcro.monte_carlo(build, 12, channels=1, networks=300, generator=seeded())
    # Its level is that of the mean squared weights of one draw, and the layers are small.
    generator = seeded()
    nets = [pilcro.draw_network(build, generator) for _ in range(50)]
    closed = [pilcro.closed_form(net, 12, channels=1).importance for net in nets]
    got, want = (F.avg_pool2d(x, 4) for x in (sum(closed)[None] / 50, sampled.importance[None]))
    error = F.avg_pool2d(sampled.standard_error[None], 4)
    assert ((got - want).abs() < 4 * error).all()
    assert (error < want / 12).all()
