"""The closed form of layers whose kernels change with the position, by enumeration and sampling."""

import copy
import itertools

import hypothesis.strategies as st
import pytest
import slowly
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import Net, noise, seeded
from test_low_rank import Largest
from torch import nn

from pilcro import PObjective, UnsupportedOperation, closed_form, draw_network, on_data
from pilcro.neighbours import (
    LocallyConnected2d,
    LowRankLocallyConnected2d,
    locally_connected2d,
    low_rank_conv2d,
)


def low_rank(*args, tables=1.0, seed=0, **options):
    """All parameters random, with as much change from position to position as ``tables`` says."""
    new = LowRankLocallyConnected2d(*args, bias=False, spatial_bias=False, **options)
    return slowly.randomised(new, seeded(seed), tables)


def local(*args, seed=0, **options):
    return slowly.randomised(LocallyConnected2d(*args, bias=False, **options), seeded(seed))


def conv(*args, seed=0, **options):
    return slowly.randomised(nn.Conv2d(*args, bias=False, **options), seeded(seed))


# --- drawn weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["row+col", "full"])
@pytest.mark.parametrize("normalisation", ["softmax", "unit", "none"])
def test_drawn_weights_are_the_mean_over_all_gates(combine, normalisation):
    """Every pattern of signs in the hidden layer is tried, with a half for the gates: what is left
    are squares of whole kernels, because banks share a gate."""
    layer = low_rank(2, 2, 2, 2, 3, combine=combine, normalisation=normalisation)
    last = conv(2, 2, 2, seed=1)
    found = closed_form(nn.Sequential(layer, nn.ReLU(), last), 3, channels=2, weights="drawn")
    assert found.exact
    one, two = slowly.jacobian(layer, (2, 3, 3)), slowly.jacobian(last, (2, 2, 2))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8))).double()
    jacobians = torch.einsum("ou,su,ui->soi", two, signs, one)
    want = jacobians.square().mean((0, 1)).reshape(2, 3, 3).sum(0) / 2
    torch.testing.assert_close(found.importance, want)

    separate = sum(  # what a sum over banks of squares would give
        slowly.jacobian(only_bank(layer, k), (2, 3, 3)).square() for k in range(3)
    )
    wrong = (two.square() @ separate).mean(0).reshape(2, 3, 3).sum(0) / 2
    assert (wrong / want - 1).abs().max() > 0.1


def only_bank(layer, k):
    """All banks but one are left out of the mixture."""
    kept = torch.zeros(layer.rank, 1, 1).double()
    kept[k] = 1
    combining = layer.combining().detach() * kept
    return lambda x: low_rank_conv2d(x, layer.weight.detach(), combining)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 1), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(1, 3),
    st.sampled_from(["low rank", "local"]),
    st.integers(0, 99),
)
def test_drawn_weights_of_two_layers(kernel, stride, padding, dilation, rank, kind, seed):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    sizes = [(7, 6)]
    for _ in range(2):
        ones = torch.zeros(1, 1, *sizes[-1]), torch.zeros(1, 1, *kernel)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        fits = all(n + 2 * p >= r for n, p, r in zip(sizes[-1], padding, reach, strict=True))
        if not fits:
            return
        sizes.append(tuple(F.conv2d(*ones, **geometry).shape[2:]))
    if kind == "local":
        layers = [
            local(2, 2, kernel, size, seed=seed + i, **geometry) for i, size in enumerate(sizes[1:])
        ]
    else:
        layers = [
            low_rank(2, 2, kernel, size, rank, seed=seed + i, combine="full", **geometry)
            for i, size in enumerate(sizes[1:])
        ]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    found = closed_form(net, (7, 6), channels=2, weights="drawn").importance
    squares = [
        slowly.jacobian(layer, (2, *size)).square()
        for layer, size in zip(layers, sizes, strict=False)
    ]
    want = (squares[1] @ squares[0]).mean(0).reshape(2, 7, 6).sum(0) / 2
    torch.testing.assert_close(found, want)


def test_the_materialised_layer_has_the_same_landscape():
    layer = low_rank(3, 4, 3, 6, 3)
    other = LocallyConnected2d(3, 4, 3, 6, bias=False).double()
    other.weight.data.copy_(layer.materialise())
    rest = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3, 3, stride=2), nn.Flatten())
    for mode in (True, False):
        nets = [nn.Sequential(one, copy.deepcopy(rest)).train(mode) for one in (layer, other)]
        one, two = (closed_form(net, 8, weights="drawn") for net in nets)
        torch.testing.assert_close(one.importance, two.importance)
        assert one.reasons == two.reasons
        assert one.exact != mode


def test_kernels_of_positions_are_not_formed():
    layer = low_rank(16, 4, 3, 14, 3)
    with Largest() as largest:
        closed_form(layer, 16, channels=16, weights="drawn")
    pairs = 6
    assert largest.numbers <= max(pairs * 4 * 14**2, pairs * 4 * 16 * 9, 16 * 16**2 * 9)
    assert largest.numbers < layer.materialise().numel() / 20


def test_kernels_that_cancel():
    """Where banks cancel, the square of their sum is zero and nothing below."""
    layer = low_rank(2, 2, 3, 6, 2, normalisation="none", combine="full")
    with torch.no_grad():
        one, two = layer.weight.unflatten(0, (2, 2))
        two.copy_(-3 * one)
        layer.tables["full"][0, :, :4] = 3 * layer.tables["full"][1, :, :4]
    for dtype in (torch.float64, torch.float32):
        found = closed_form(layer.to(dtype), 8, channels=2, weights="drawn").importance
        assert (found >= 0).all()
        assert found[:, :4].max() < 1e-6 * found.max()
        assert found[1:-1, 6].min() > 1e-4 * found.max()


def test_the_twin_is_differentiable():
    """Its gradient is that of the materialised layer, back through the materialisation."""
    layer = low_rank(2, 3, 3, 6, 3)
    other = LocallyConnected2d(2, 3, 3, 6, bias=False).double()
    kernels = layer.materialise()
    other.weight.data.copy_(kernels)
    rest = [nn.ReLU(), conv(3, 2, 3, stride=2)]
    twin, images = PObjective(1.0, estimator="twin"), noise(1, 2, 8, 8)
    one = twin(nn.Sequential(layer, *rest), images)
    two = twin(nn.Sequential(other, *rest), images)
    torch.testing.assert_close(one, two)
    tensors = [layer.weight, *layer.tables.values()]
    got = torch.autograd.grad(one, tensors)
    (of_kernels,) = torch.autograd.grad(two, [other.weight])
    torch.testing.assert_close(got, torch.autograd.grad(kernels, tensors, of_kernels))
    assert min(gradient.abs().max() for gradient in got) > 1e-3


# --- expected weights ----------------------------------------------------------------------------


def all_signs(layer):
    """The layer with weights of variance 1, in so many patterns of signs that any two weights have
    equal signs in half of them: means of what is quadratic in the weights are those over all."""
    count = layer.weight.numel()
    patterns = torch.ones(1, 1)
    while len(patterns) <= count:
        patterns = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), patterns)
    for signs in patterns:
        layer.weight.data.copy_(signs[1 : count + 1].reshape(layer.weight.shape))
        yield layer


SMALL = {
    "low rank": lambda: low_rank(1, 1, (2, 2), (3, 3), 2, combine="full", normalisation="none"),
    "softmax": lambda: low_rank(1, 1, (1, 2), (4, 3), 3, combine="row+col"),
    "two channels": lambda: low_rank(2, 2, (1, 2), (4, 3), 1, normalisation="none"),
    "local": lambda: local(1, 1, (2, 2), (3, 3)),
}


@pytest.mark.parametrize("name", SMALL)
def test_expected_weights_are_the_mean_over_drawn_ones(name):
    """Between banks nothing is left."""
    layer = SMALL[name]()
    channels = layer.in_channels
    drawn = [
        closed_form(signed, 4, channels=channels, weights="drawn").importance
        for signed in all_signs(layer)
    ]
    found = closed_form(layer, 4, channels=channels)
    assert found.exact
    torch.testing.assert_close(found.importance, torch.stack(drawn).mean(0))
    cross_terms = name in ("low rank", "softmax")
    assert (torch.stack(drawn).std(0).max() > 0.01) == cross_terms


@pytest.mark.parametrize("name", SMALL)
def test_covariances_between_averages(name):
    """Averages on both sides, no gates: exact for a few channels too."""
    layer = SMALL[name]()
    channels = layer.in_channels
    net = nn.Sequential(nn.AvgPool2d(2, 1), layer, nn.AvgPool2d(2, 1), nn.Flatten())
    total = [slowly.jacobian(net, (channels, 5, 5)).square().mean(0) for _ in all_signs(layer)]
    want = torch.stack(total).mean(0).reshape(channels, 5, 5).sum(0)
    found = closed_form(net, 5, channels=channels)
    assert [reason.split(" of ")[0] for reason in found.reasons] == ["1: filters"]
    torch.testing.assert_close(found.importance, want)
    diagonal = closed_form(net, 5, channels=channels, covariances=False).importance
    independent = name == "local"  # gradients at two pixels, behind kernels that share nothing
    assert ((diagonal / want - 1).abs().max() < 1e-9) == independent


def test_a_constant_table_has_the_landscape_of_a_convolution():
    """As an architecture at its start, whatever the rank."""
    rest = [nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    want = closed_form(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *rest), 12).normalised
    for kind in (
        lambda: LowRankLocallyConnected2d(3, 4, 3, 10, 3),
        lambda: LowRankLocallyConnected2d(3, 4, 3, 10, 3, combine="full", normalisation="none"),
        lambda: LocallyConnected2d(3, 4, 3, 10),
    ):
        found = closed_form(nn.Sequential(draw_network(kind), *rest), 12)
        torch.testing.assert_close(found.normalised, want)


def test_blocks_of_channels_behind_a_concatenation():
    """Channels that are not alike are added up before one kernel serves all."""
    for build in (lambda: low_rank(5, 2, 3, 4, 2), lambda: local(5, 2, 3, 4)):
        layer, branch = build(), conv(2, 3, 1)
        net = Net(lambda x, a, b: b(torch.cat([x, a(x)], 1)), branch, layer)
        gain = branch.weight.square().mean() * 2
        alone = closed_form(layer, 6, channels=5).importance / 5  # of one channel
        want = alone * 2 + 3 * alone * gain.item()
        torch.testing.assert_close(closed_form(net, 6, channels=2).importance, want)


def mean_over_networks(build, channels, networks, random, size, side=2):
    """Mean and standard error over networks of every cell of a landscape."""
    found = []
    for _ in range(networks):
        images = torch.randn(4, channels, size, size, generator=random)
        net = draw_network(build, random)
        found.append(on_data(net, images, projections=4, generator=random).importance)
    cells = F.avg_pool2d(torch.stack(found)[:, None], side).flatten(1)
    return cells.mean(0), cells.std(0) / networks**0.5


def drawn_anew(build):
    """Weights are normal, of variance 1 / fan in; tables and spatial biases are as built."""

    def draw():
        net = build()
        for layer in net:
            if hasattr(layer, "in_channels"):
                kernel = layer.weight[0, 0] if layer.weight.ndim == 6 else layer.weight
                nn.init.normal_(layer.weight, std=kernel[0].numel() ** -0.5)
        return net

    return draw


def constant(build):
    """The network in which every weight is one standard deviation."""
    net = build()
    for layer in net:
        if hasattr(layer, "in_channels"):
            kernel = layer.weight[0, 0] if layer.weight.ndim == 6 else layer.weight
            nn.init.constant_(layer.weight, kernel[0].numel() ** -0.5)
    return net


def uneven(*args, **options):
    """Tables of random numbers, without biases."""
    layer = low_rank(*args, normalisation="unit", tables=2.0, **options).float()
    return layer


SAMPLED = {
    "low rank": lambda: nn.Sequential(
        uneven(2, 8, 3, 6, 2, combine="full"),
        nn.ReLU(),
        uneven(8, 8, 3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False),
    ),
    "no normalisation": lambda: nn.Sequential(
        low_rank(2, 8, 3, 6, 2, normalisation="none", combine="row").float(),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False),
    ),
    "local": lambda: nn.Sequential(
        local(2, 8, 3, 6).float(), nn.ReLU(), local(8, 4, 3, 4).float(), nn.ReLU()
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_networks_agree(name, generator):
    """All ReLUs, and a few channels: exact."""
    found = closed_form(constant(SAMPLED[name]), 8, channels=2)
    assert found.exact
    mean, error = mean_over_networks(drawn_anew(SAMPLED[name]), 2, 250, generator, 8)
    want = F.avg_pool2d(found.importance[None, None], 2).flatten()
    assert ((mean - want) / error).abs().max() < 4
    assert (error / mean).max() < 0.1


OVERLAPPING = {
    "low rank": lambda: nn.Sequential(
        nn.Conv2d(48, 128, 3, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3, 1),
        uneven(128, 128, 3, 4, 2, combine="full"),
        nn.ReLU(),
        nn.AvgPool2d(3, 1),
    ),
    "local": lambda: nn.Sequential(
        local(48, 128, 3, 8).float(),
        nn.ReLU(),
        nn.AvgPool2d(3, 1),
        nn.Conv2d(128, 128, 3, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3, 1),
    ),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_gates_at_two_positions(name, generator):
    """Wide layers between overlapping averages; the diagonal alone is far off."""
    net = constant(OVERLAPPING[name])
    found = closed_form(net, 10, channels=48)
    assert found.exact, found.reasons
    mean, error = mean_over_networks(drawn_anew(OVERLAPPING[name]), 48, 30, generator, 10)
    want = F.avg_pool2d(found.importance[None, None], 2).flatten()
    assert ((mean - want) / error).abs().max() < 4
    assert (error / mean).max() < 0.05
    diagonal = closed_form(net, 10, channels=48, covariances=False).importance
    assert ((mean - F.avg_pool2d(diagonal[None, None], 2).flatten()) / error).abs().max() > 10


# --- biases --------------------------------------------------------------------------------------


def test_a_spatial_bias_opens_gates(generator):
    """All channels share it, so it is a mean: gates on the left are more open than on the right."""

    def build():
        layer = LowRankLocallyConnected2d(8, 32, 3, 8, 2, bias=False, combine="col")
        layer.spatial_biases["col"].data.copy_(torch.linspace(2, -2, 8))
        layer.tables["col"].data.copy_(torch.linspace(0, 3, 16).reshape(2, 1, 8))
        return nn.Sequential(layer, nn.ReLU())

    found = closed_form(constant(build), 10, channels=8)
    assert any("0: " not in reason and "not symmetric" in reason for reason in found.reasons)
    mean, error = mean_over_networks(drawn_anew(build), 8, 100, generator, 10)
    want = F.avg_pool2d(found.importance[None, None], 2).flatten()
    assert ((mean - want) / error).abs().max() < 4
    assert (error / mean).max() < 0.05
    left, right = found.importance[:, :3].mean(), found.importance[:, -3:].mean()
    assert left > 3 * right
    drawn = closed_form(draw_network(drawn_anew(build)), 10, channels=8, weights="drawn")
    assert drawn.reasons == found.reasons


def test_biases_of_channels_are_symmetric():
    """As those of a convolution: they move no gate on average."""
    for layer in (LowRankLocallyConnected2d(2, 3, 3, 4, 2), LocallyConnected2d(2, 3, 3, 4)):
        before = closed_form(nn.Sequential(layer, nn.ReLU()), 6, channels=2)
        nn.init.normal_(layer.bias, generator=seeded())
        after = closed_form(nn.Sequential(layer, nn.ReLU()), 6, channels=2)
        assert before.exact
        assert after.exact
        torch.testing.assert_close(before.importance, after.importance)


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_biases_count_in_batch_statistics(weights):
    """In train mode what varies is divided by: squares of weights, not biases."""
    for layer in (LowRankLocallyConnected2d(2, 3, 3, 4, 2), LocallyConnected2d(2, 3, 3, 4)):
        nn.init.normal_(layer.bias, generator=seeded())
        net = nn.Sequential(layer, nn.BatchNorm2d(3)).double()
        found = closed_form(net, 6, channels=2, weights=weights)
        layer.bias = None
        want = closed_form(net, 6, channels=2, weights=weights)
        torch.testing.assert_close(found.importance, want.importance)


def test_with_biases_covariances_stop_at_the_layer():
    """Their biases differ from position to position; the diagonal goes on, and says so."""
    layers = LowRankLocallyConnected2d(40, 3, 3, 4, 2), LocallyConnected2d(40, 3, 3, 4)
    for layer, bias in zip(layers, ("spatial_biases.row", "bias"), strict=True):
        net = nn.Sequential(layer, nn.AvgPool2d(2, 1))
        assert closed_form(net, 6, channels=40).exact
        nn.init.normal_(layer.get_parameter(bias), generator=seeded())
        found = closed_form(net, 6, channels=40)
        assert [reason[:18] for reason in found.reasons] == ["1: average pooling"]


# --- what has no rule ----------------------------------------------------------------------------


def test_combining_weights_from_images_have_no_rule():
    layer = LowRankLocallyConnected2d(2, 3, 3, 4, 2, combine="input")
    net = nn.Sequential(nn.Identity(), layer, nn.AdaptiveAvgPool2d(1))
    message = "combining weights that are computed from the images, in module '1.context'"
    for options in ({}, {"weights": "drawn"}, {"covariances": True}):
        with pytest.raises(UnsupportedOperation, match=message):
            closed_form(net, 6, channels=2, **options)
    assert on_data(net, torch.rand(2, 2, 6, 6)).importance.shape == (6, 6)


def test_a_table_for_each_image_has_no_rule():
    weight, table = noise(2, 1, 1, 1), noise(1, 2, 4, 4)
    net = Net(lambda x: low_rank_conv2d(x, weight, table))
    for options in ({}, {"covariances": True}):
        with pytest.raises(UnsupportedOperation, match="with combining weights for each image"):
            closed_form(net, 4, channels=1, **options)


def test_wrong_images_are_refused_as_they_are_in_training(as_a_user):
    for layer in (LowRankLocallyConnected2d(2, 3, 3, 4, 2), LocallyConnected2d(2, 3, 3, 4)):
        for options in ({}, {"weights": "drawn"}, {"covariances": True}):
            with pytest.raises(ValueError, match=r"output_size is \(4, 4\), but images of 7 x 7"):
                closed_form(layer, 7, channels=2, **options)
            with pytest.raises(ValueError, match=r"the layer takes images \(batch, 2, "):
                closed_form(layer, 6, channels=3, **options)


def test_computed_kernels_are_taken_to_be_independent():
    """As those of a convolution."""
    for function, shape in (
        (low_rank_conv2d, (2, 1, 1, 1)),
        (locally_connected2d, (2, 2, 1, 1, 1, 1)),
    ):
        weight = noise(*shape)
        table = [noise(2, 2, 2)] if function is low_rank_conv2d else []
        net = Net(lambda x, f=function, w=weight, t=table: f(x, 2 * w, *t))
        found = closed_form(net, 2, channels=1)
        assert "weights that are computed or fixed" in found.reasons[0]
