"""Covariances of positions: every rule against explicit matrices, samples, or all weights.

For a linear operation with the matrix M the covariance K of positions becomes M K M^T, and a sum of
those over the taps of a kernel where weights come in between. The matrices are made by running the
operation itself on one image for each pixel.
"""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from networks import Net
from torch import nn

import pilcro
from pilcro.covariances import Covariance, Moments
from pilcro.rules.pooling import CORRELATED
from pilcro.second_moments import Run, SecondMoment


def constant(net, value=0.5):
    """All weights have one size, so that E[W^2] is known."""
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net.double()


def random_pairs(blocks, size, seed):
    """Random covariance matrices, (blocks, h, w, h, w)."""
    random = torch.Generator().manual_seed(seed)
    n = math.prod(size)
    root = torch.randn(blocks, n, n, generator=random, dtype=torch.float64) / n**0.5
    return (root @ root.mT).reshape(blocks, *size, *size)


def a_map(size, widths=(2,), *, layers=None, seed=0, flips=frozenset({"image"})):
    """A map whose moments are all different."""
    average = torch.rand(len(widths), *size, generator=torch.Generator().manual_seed(seed)).double()
    pairs = (random_pairs(len(widths), size, seed + i) for i in range(3))
    # differentiable: or the diagonal takes ``path`` for ``second``
    run = Run(layers or nn.Identity(), expected=True, differentiable=True)
    return Covariance(Moments(*pairs, average), widths, run, {"image"}, flips)


def matrix(function, size):
    """Of a linear operation on maps: its values on one image for each pixel, (out, in)."""
    basis = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, 1, *size)
    zero = function(torch.zeros_like(basis))
    return (function(basis) - zero).flatten(1).T


def flat(pairs):
    """(blocks, h, w, h, w) as (blocks, h w, h w)."""
    return pairs.flatten(3, 4).flatten(1, 2)


def assert_acts_as(out, x, m, *, average=True):
    """``out`` is what the matrix makes of ``x``."""
    for name in ("path", "second", "shared"):
        got, before = (flat(getattr(each.moments, name)) for each in (out, x))
        torch.testing.assert_close(got, m @ before @ m.T, rtol=1e-10, atol=1e-12)
    want = x.moments.average.flatten(1) @ m.T if average else torch.zeros(len(x.widths), len(m))
    torch.testing.assert_close(out.moments.average.flatten(1), want.double())


# --- linear rules: M K M^T -----------------------------------------------------------------------

SIZE = (5, 4)
LINEAR = {
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, one axis": lambda x: F.avg_pool2d(x, (1, 3), (2, 1), (0, 1)),
    "average, ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "average, pad not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, False, False),
    "average, divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive, one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "adaptive, enlarging": lambda x: F.adaptive_avg_pool2d(x, 7),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean, other way round": lambda x: torch.mean(x, (-1, -2), keepdim=True),
    "zeros": lambda x: F.pad(x, (1, 2, 0, 1)),
    "zeros, one axis": lambda x: F.pad(x, (2, 1)),
    "crop": lambda x: F.pad(x, (-1, 0, 1, -2)),
    "replicate": lambda x: F.pad(x, (1, 2, 0, 4), mode="replicate"),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "circular": lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"),
    "copies": lambda x: x.clone().contiguous().to(torch.float64),
    "dropout in eval mode": lambda x: F.dropout(x, 0.3, training=False),
    "by name": lambda x: F.avg_pool2d(input=x, kernel_size=2),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operation_acts_on_both_positions(name):
    x = a_map(SIZE, widths=(2, 5))
    out = LINEAR[name](x)
    assert isinstance(out, Covariance)
    assert out.flips == x.flips
    assert out.shape == LINEAR[name](torch.zeros(1, 7, *SIZE)).shape
    assert_acts_as(out, x, matrix(LINEAR[name], SIZE))
    assert not out.run.reasons


def test_a_mean_without_its_dimensions_keeps_the_diagonal():
    x = a_map(SIZE, widths=(2, 5))
    out, kept = x.mean([2, 3]), x.mean([2, 3], keepdim=True)
    assert out.shape == (1, 7)
    want = kept.moments.second.flatten().repeat_interleave(torch.tensor([2, 5]))
    torch.testing.assert_close(out.second()[0], want)


@st.composite
def convolutions(draw):
    """Arguments of a convolution, the kernel's size, and the map it works on."""
    groups = draw(st.sampled_from([1, 2]))
    widths = (2,) if groups == 2 else draw(st.sampled_from([(1,), (3,), (1, 2)]))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    same = draw(st.booleans())
    arguments = {
        "stride": 1 if same else draw(pairs),
        "padding": "same" if same else draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "groups": groups,
    }
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return arguments, draw(pairs), widths, size


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=60, deadline=None)
@given(convolutions(), st.booleans())
def test_a_convolution_sums_over_its_taps(case, biased):
    arguments, kernel, widths, size = case
    groups = arguments["groups"]
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.full((4, sum(widths) // groups, *kernel), 0.7).double())
    layer.bias = nn.Parameter(torch.full((4,), 1.5).double()) if biased else None
    alone = {**arguments, "groups": 1}
    taps = torch.eye(math.prod(kernel), dtype=torch.float64).reshape(-1, 1, 1, *kernel)
    try:
        matrices = [matrix(lambda x, t=t: F.conv2d(x, t, **alone), size) for t in taps]
    except RuntimeError:  # the kernel does not fit
        assume(False)

    x = a_map(size, widths, layers=layer)
    out = F.conv2d(x, layer.weight, layer.bias, **arguments)
    share = torch.tensor(widths).double()[:, None, None] / groups
    for name in ("path", "second", "shared"):
        before = (share * flat(getattr(x.moments, name))).sum(0)
        want = 0.49 * sum(m @ before @ m.T for m in matrices)
        want = want + (2.25 if biased and name != "path" else 0)
        torch.testing.assert_close(flat(getattr(out.moments, name))[0], want)
    assert not out.moments.average.any()
    assert out.shape == F.conv2d(torch.zeros(x.shape).double(), layer.weight, **arguments).shape
    assert out.flips
    assert out.flips != x.flips


def test_an_addition_of_unlike_branches_adds_up():
    x, y = a_map(SIZE), a_map(SIZE, seed=7, flips={"other"})
    out = torch.add(x, y, alpha=3)
    for name in ("path", "second", "shared"):
        one, two = getattr(x.moments, name), getattr(y.moments, name)
        torch.testing.assert_close(getattr(out.moments, name), one + 9 * two)
    torch.testing.assert_close(out.moments.average, x.moments.average + 3 * y.moments.average)
    seen = x
    x += y
    assert seen is x
    torch.testing.assert_close(8 * y.moments.second, out.moments.second - x.moments.second)


def test_a_concatenation_keeps_blocks_apart():
    x, y = a_map(SIZE, (2,)), a_map(SIZE, (5, 1), seed=7)
    out = torch.cat([x, y], dim=1)
    assert out.widths == (2, 5, 1)
    assert out.shape == (1, 8, *SIZE)
    for name in ("path", "second", "shared", "average"):
        one, two = getattr(x.moments, name), getattr(y.moments, name)
        assert torch.equal(getattr(out.moments, name), torch.cat([one, two]))
    assert torch.cat([x, y], -3).widths == out.widths
    assert isinstance(torch.cat([x, x], 2), SecondMoment)


def test_the_diagonal_writes_every_channel_out():
    x = a_map(SIZE, (2, 1))
    out = x.diagonal_only()
    assert out.shape == (1, 3, *SIZE)
    second = flat(x.moments.second).diagonal(dim1=1, dim2=2).reshape(2, *SIZE)
    torch.testing.assert_close(out.second()[0], second[[0, 0, 1]])
    torch.testing.assert_close(out.average()[0], x.moments.average[[0, 0, 1]])


def norm(training):
    layer = nn.BatchNorm2d(2, eps=0.5).double().train(training)
    layer.running_var.copy_(torch.tensor([1.5, 3.5]))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 6.0]))
    return layer


def test_batch_norm_in_eval_mode_is_a_gain_for_each_channel():
    layer = norm(training=False)
    x = a_map(SIZE, layers=layer)
    out = layer(x)
    gain = (4 / 2 + 36 / 4) / 2  # of gamma^2 / (variance + eps), not of each alone
    torch.testing.assert_close(out.moments.second, gain * x.moments.second)
    assert not out.run.reasons


def test_batch_norm_in_train_mode_takes_out_the_mean_of_the_batch():
    """z - mean over positions is a matrix; the mean over images goes with ``shared``."""
    layer = norm(training=True)
    x = a_map(SIZE, layers=layer)
    second, shared = flat(x.moments.second)[0], flat(x.moments.shared)[0]
    out = layer(x)

    n = len(second)
    ones = torch.ones(n, n, dtype=torch.float64) / n
    common = ones @ shared + shared @ ones - ones @ shared @ ones
    variance = second.trace() / n - shared.mean()
    gain = (4 + 36) / 2 / (variance + 0.5)
    torch.testing.assert_close(flat(out.moments.second)[0], gain * (second - common))
    centre = torch.eye(n) - ones
    torch.testing.assert_close(flat(out.moments.shared)[0], gain * centre @ shared @ centre)
    torch.testing.assert_close(out.moments.path, gain * x.moments.path)
    assert "batch statistics" in out.run.reasons[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", ["bias", "running_mean"])
def test_batch_norm_that_shifts_goes_on_with_the_diagonal(training, what):
    layer = norm(training)
    with torch.no_grad():
        getattr(layer, what).fill_(2.0)
    ignored = training and what == "running_mean"
    assert isinstance(layer(a_map(SIZE, layers=layer)), Covariance) == ignored


def test_batch_norm_checks_its_channels():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(7, affine=False).eval())
    with pytest.raises(ValueError, match="expected 7 channels, got 4"):
        pilcro.closed_form(net, 4, channels=1, covariances=True)


# --- ReLU: correlated normal numbers -------------------------------------------------------------


def pair_of_pixels(rho, scale=(1.0, 1.0)):
    """Two pixels with this correlation, among images too."""
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    covariance = covariance * torch.outer(torch.tensor(scale), torch.tensor(scale))
    pairs = covariance.reshape(1, 1, 2, 1, 2)
    moments = Moments(pairs.clone(), pairs, pairs / 2, torch.zeros(1, 1, 2).double())
    return Covariance(moments, [1], Run(nn.Identity(), expected=True), {"image"}, {"image"})


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.2, 0.7, 0.99])
def test_relu_against_correlated_normal_numbers(rho):
    x = pair_of_pixels(rho, scale=(0.5, 3.0))
    out = F.relu(x).moments

    draws = 400_000
    random = torch.Generator().manual_seed(1)
    standard = torch.randn(draws, 2, generator=random, dtype=torch.float64)
    for got, covariance in ((out.second, x.moments.second), (out.shared, x.moments.shared)):
        # two images have half of the correlation, but each has the whole variance
        whole = flat(covariance)[0].clone()
        whole.fill_diagonal_(0).diagonal().add_(flat(x.moments.second)[0].diagonal())
        z = (standard @ torch.linalg.cholesky(whole).T).relu()
        product = z[:, 0] * z[:, 1]
        error = product.std() / draws**0.5
        assert (got[0, 0, 0, 0, 1] - product.mean()).abs() < 4.5 * error

    z = standard @ torch.linalg.cholesky(flat(x.moments.second)[0]).T
    both = (z > 0).all(1).double()
    gate = out.path[0, 0, 0, 0, 1] / x.moments.path[0, 0, 0, 0, 1]
    assert (gate - both.mean()).abs() < 4.5 * both.std() / draws**0.5
    error = z.relu().std(0) / draws**0.5
    assert ((out.average[0, 0] - z.relu().mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize(
    ("rho", "open_", "product"),
    [(1.0, 1 / 2, 1 / 2), (0.0, 1 / 4, 1 / (2 * math.pi)), (-1.0, 0.0, 0.0)],
)
def test_relu_at_known_correlations(rho, open_, product):
    x = pair_of_pixels(rho)
    x.moments.path.fill_(1.0)
    out = torch.relu(x).moments
    close = {"rtol": 0, "atol": 1e-7}
    torch.testing.assert_close(float(out.path[0, 0, 0, 0, 1]), open_, **close)
    torch.testing.assert_close(float(out.second[0, 0, 0, 0, 1]), product, **close)
    torch.testing.assert_close(float(out.path[0, 0, 0, 0, 0]), 1 / 2, **close)
    torch.testing.assert_close(float(out.second[0, 0, 1, 0, 1]), 1 / 2, **close)
    torch.testing.assert_close(float(out.average[0, 0, 0]), (2 * math.pi) ** -0.5, **close)


def test_relu_of_pixels_that_are_always_zero():
    out = F.relu(F.pad(pair_of_pixels(0.5), (1, 1))).moments
    assert all(part.isfinite().all() for part in vars(out).values())
    assert not out.path[..., 0].any()


# --- in place, and what has no rule --------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        torch.relu_,
        torch.Tensor.relu_,
        lambda x: F.relu(x, inplace=True),
        lambda x: x.add_(a_map(SIZE, flips={"other"})),
        lambda x: x.__iadd__(a_map(SIZE, flips={"other"})),
    ],
)
def test_in_place_operations_change_the_map_itself(change):
    x = a_map(SIZE)
    before = x.moments
    assert change(x) is x
    assert x.moments is not before


IN_PLACE = {  # ReLU behind ReLU has no rule for covariances: it has to go on with the diagonal
    "relu": lambda y: F.relu(y, inplace=True),
    "relu_": torch.relu_,
    "hardswish": lambda y: F.hardswish(y, inplace=True),
    "mul_": lambda y: y.mul_(3),
    "imul": lambda y: y.__imul__(3),
    "iadd": lambda y: y.__iadd__(1),
    "dropout": lambda y: F.dropout(y, 0.5, training=True, inplace=True),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_without_a_rule_is_seen_by_everyone_who_holds_the_map(name):
    def forward(x, layer):
        y = F.relu(layer(x))
        IN_PLACE[name](y)
        return y.mean((2, 3))

    net = Net(forward, nn.Conv2d(32, 8, 3))
    followed, alone = (
        pilcro.closed_form(net, 6, channels=32, covariances=c) for c in (True, False)
    )
    torch.testing.assert_close(followed.importance, alone.importance, rtol=2e-3, atol=0)
    assert followed.reasons == alone.reasons


def test_a_map_that_is_returned_after_a_change_in_place_has_changed():
    def forward(x):
        x.mul_(3)
        return x

    found = pilcro.closed_form(Net(forward), 2, channels=32, covariances=True)
    torch.testing.assert_close(found.importance, torch.full((2, 2), 9 / 4).double())


FALL_BACK = {
    "max pooling": (lambda x, a: a(F.max_pool2d(x, 2)).mean((2, 3)), "max pooling"),
    "activation": (lambda x, a: F.silu(a(x)).mean((2, 3)), "silu"),
    "product": (lambda x, a: (a(x) * torch.sigmoid(x)).mean((2, 3)), "product"),
    "twice": (lambda x, a: (lambda y: (y + y).mean((2, 3)))(a(x)), "average pooling"),
    "ReLU behind ReLU": (lambda x, a: F.relu(F.relu(a(x))).mean((2, 3)), "ReLU"),
    "grouped, unequal": (lambda x, a: unequal_groups(x, a).mean((2, 3)), "average pooling"),
    "rows only": (lambda x, a: a(x).mean(2).mean(2), "average pooling"),
    "padded with ones": (lambda x, a: F.pad(a(x), (1, 1), value=1.0).mean((2, 3)), "average"),
}


@pytest.mark.parametrize("name", FALL_BACK)
def test_without_a_rule_the_diagonal_goes_on_with_its_reasons(name):
    function, reason = FALL_BACK[name]
    net = Net(function, nn.Conv2d(32, 32, 3, padding=1))
    followed, alone = (
        pilcro.closed_form(net, 6, channels=32, covariances=c) for c in (True, False)
    )
    assert any(reason in text for text in followed.reasons)
    torch.testing.assert_close(followed.importance, alone.importance, rtol=2e-3, atol=0)


GROUPED = torch.ones(64, 1, 1, 1)


def unequal_groups(x, a):
    return F.conv2d(torch.cat([x, a(x)], 1), GROUPED, groups=64)


def test_arguments_by_name_are_those_by_place():
    layer = nn.Conv2d(32, 8, 3)
    by_name, by_place = (
        Net(function, layer)
        for function in (
            lambda x, a: F.conv2d(input=F.relu(input=a(x)), weight=WEIGHT).mean((2, 3)),
            lambda x, a: F.conv2d(F.relu(a(x)), WEIGHT).mean((2, 3)),
        )
    )
    one, other = (pilcro.closed_form(net, 6, channels=32) for net in (by_name, by_place))
    assert torch.equal(one.importance, other.importance)
    net = Net(lambda x, a: a(x).mean(axis=(2, 3)), layer)
    with pytest.raises(pilcro.second_moments.UnsupportedOperation, match="axis"):
        pilcro.closed_form(net, 6, channels=32, covariances=True)


WEIGHT = torch.ones(3, 8, 2, 2)


# --- linear networks are exact at any width: all products of weights, one by one -----------------

LINEAR_NETWORKS = {
    "global": lambda: [nn.Conv2d(2, 2, 2), nn.Conv2d(2, 1, (1, 2)), nn.AdaptiveAvgPool2d(1)],
    "zeros": lambda: [nn.Conv2d(1, 2, 2, padding=1), nn.AvgPool2d(2), nn.Conv2d(2, 1, 2)],
    **{
        mode: lambda mode=mode: [
            nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode),
            nn.AvgPool2d(2, 1),
            nn.Conv2d(2, 1, 2, 2, padding=1, padding_mode=mode),
            nn.AdaptiveAvgPool2d(1),
        ]
        for mode in ("reflect", "replicate", "circular")
    },
    "padding layers": lambda: [
        nn.ReplicationPad2d((2, 0, 1, 0)),
        nn.Conv2d(1, 1, 2, 2),
        nn.ReflectionPad2d(1),
        nn.Conv2d(1, 2, 2),
        nn.AdaptiveAvgPool2d((1, 2)),
    ],
    "dilated groups": lambda: [
        nn.Conv2d(2, 4, 2, dilation=2, groups=2),
        nn.AvgPool2d(2, 1, 1, count_include_pad=False),
        nn.Conv2d(4, 1, 1),
        nn.AdaptiveAvgPool2d(1),
    ],
}


# Disjoint windows, zeros around: each pixel is read through different weights, so squares add up.
UNCORRELATED = ("global", "zeros")


def all_products_of_weights(net, size, channels):
    """E[W^2] = 1/4: the network is a sum over choices of one weight from each layer; different
    products are uncorrelated."""
    layers = [module for module in net if isinstance(module, nn.Conv2d)]
    total = 0
    for choice in itertools.product(*(range(layer.weight.numel()) for layer in layers)):
        for layer, entry in zip(layers, choice, strict=True):
            nn.init.zeros_(layer.weight)
            layer.weight.data.flatten()[entry] = 1.0
        image = torch.zeros(1, channels, *size, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(net, image).reshape(-1, *image.shape)
        total = total + jacobian.square().sum((1, 2)) * 0.25 ** len(layers)
    return total.mean(0)


@pytest.mark.parametrize("name", LINEAR_NETWORKS)
def test_a_linear_network_is_exact_at_any_width(name):
    net = nn.Sequential(*LINEAR_NETWORKS[name]())
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
    channels = next(layer.in_channels for layer in net if isinstance(layer, nn.Conv2d))
    got = pilcro.closed_form(constant(net), (4, 5), channels=channels, covariances=True)
    want = all_products_of_weights(net, (4, 5), channels)
    torch.testing.assert_close(got.importance, want, rtol=1e-10, atol=1e-14)
    alone = pilcro.closed_form(constant(net), (4, 5), channels=channels, covariances=False)
    assert torch.allclose(alone.importance, want, rtol=1e-6) == (name in UNCORRELATED)


# --- wide networks with ReLU against sampled ones ------------------------------------------------

WIDE = {  # (forward, layers, whether the diagonal alone is good enough)
    "chain": (
        lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))).mean((2, 3)),
        lambda: [nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3, stride=2), nn.Conv2d(64, 8, 1)],
        True,
    ),
    "pools between": (
        lambda x, a, b: b(F.avg_pool2d(F.relu(a(x)), 2)).mean((2, 3)),
        lambda: [nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 16, 3, padding=1)],
        True,
    ),
    "ReLU between overlapping pools": (
        lambda x, a, b: F.relu(b(F.avg_pool2d(F.relu(a(x)), 3, 2))).mean((2, 3)),
        lambda: [nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3)],
        False,
    ),
    "replicate": (
        lambda x, a, b: F.adaptive_avg_pool2d(F.relu(b(F.relu(a(x)))), (2, 1)),
        lambda: [
            nn.Conv2d(32, 64, 3, padding=2, padding_mode="replicate"),
            nn.Conv2d(64, 64, 3, padding=2, padding_mode="replicate"),
        ],
        False,
    ),
    "concatenation and shortcut": (
        lambda x, a, b, c: (c(torch.cat([F.avg_pool2d(x, 3, 1, 1), F.relu(a(x))], 1)) + b(x)).mean(
            (2, 3)
        ),
        lambda: [nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(32, 16, 1), nn.Conv2d(96, 16, 3, 1, 1)],
        False,
    ),
    "batch norm": (
        lambda x, a, n, b: F.avg_pool2d(b(F.avg_pool2d(F.relu(n(a(x))), 3, 1, 1)), 7),
        lambda: [
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64).eval(),
            nn.Conv2d(64, 16, 3),
        ],
        False,
    ),
}


def wide(name, fill):
    function, layers, _ = WIDE[name]
    net = Net(function, *layers())
    for module in net.layers:
        if isinstance(module, nn.Conv2d):
            fill(module.weight, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                fill(module.bias, 0.2)
    return net


@pytest.mark.parametrize("name", WIDE)
def test_wide_networks_agree_with_sampled_ones(name):
    """Level included, on 3 x 3 blocks of a 9 x 9 image."""
    known = wide(name, lambda tensor, size: nn.init.constant_(tensor, size))
    followed, alone = (
        pilcro.closed_form(known, 9, channels=32, covariances=c) for c in (None, False)
    )
    assert followed.exact, followed.reasons
    assert not alone.exact

    build = lambda: wide(name, lambda tensor, size: nn.init.normal_(tensor, std=size))  # noqa: E731
    random = torch.Generator().manual_seed(3)
    sampled = torch.stack(
        [
            pooled(pilcro.monte_carlo(build, 9, channels=32, networks=4, generator=random))
            for _ in range(40)
        ]
    )
    error = sampled.std(0) / 40**0.5
    z, z_alone = ((pooled(found) - sampled.mean(0)) / error for found in (followed, alone))
    assert z.abs().max() < 4
    assert z_alone.abs().max() < 4 if WIDE[name][2] else z_alone.abs().max() > 6
    assert (error / sampled.mean(0)).max() < 0.06


def pooled(landscape):
    return F.avg_pool2d(landscape.importance[None], 3).flatten()


# --- when covariances are followed ---------------------------------------------------------------


def averaging(channels=32):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize("size", [22, (11, 44)])
def test_small_images_are_followed_automatically(size):
    net = averaging()
    found = pilcro.closed_form(net, size, channels=32)
    assert found.exact
    asked = pilcro.closed_form(net, size, channels=32, covariances=True)
    assert torch.equal(found.importance, asked.importance)


@pytest.mark.parametrize(
    "options",
    [{"image_size": 23}, {"image_size": 9, "covariances": False}, {"weights": "drawn"}],
)
def test_other_images_are_not(options):
    found = pilcro.closed_form(averaging(), **{"image_size": 9, "channels": 32, **options})
    assert any(CORRELATED in reason for reason in found.reasons)


def test_where_nothing_is_averaged_the_diagonal_is_enough():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    assert pilcro.closed_form(net, 9, channels=2).exact


def test_covariances_of_drawn_weights_are_refused():
    with pytest.raises(ValueError, match=r'covariances need weights="expected", got .*"drawn"'):
        pilcro.closed_form(averaging(), 9, channels=32, weights="drawn", covariances=True)


@pytest.mark.parametrize("channels", [1, 3, 31])
def test_an_image_of_few_channels_is_named(channels):
    found = pilcro.closed_form(averaging(channels), 9, channels=channels)
    assert len(found.reasons) == 1
    assert f"filters of {channels} channels" in found.reasons[0]


def test_all_units_together_are_the_whole_landscape():
    net = nn.Sequential(nn.Conv2d(32, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 2))
    options = {"channels": 32, "covariances": True}
    units = [
        pilcro.closed_form(net, 9, unit=unit, **options).importance
        for unit in itertools.product(range(3), repeat=2)
    ]
    whole = pilcro.closed_form(net, 9, **options)
    assert whole.exact
    torch.testing.assert_close(torch.stack(units).mean(0), whole.importance)
    assert not units[0][7:].any()


def test_the_model_is_left_bit_identical():
    net = nn.Sequential(nn.Conv2d(32, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AvgPool2d(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pilcro.closed_form(net, 9, channels=32, covariances=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert not torch.is_inference(net[0].weight)


def test_pairs_that_never_met_a_rule_say_so():
    def slips_past(x):
        with torch._C.DisableTorchFunctionSubclass():
            return torch.sin(x)

    with pytest.raises(ValueError, match="slipped past"):
        pilcro.closed_form(Net(slips_past), 4, channels=32, covariances=True)


def test_repr_tells_the_shape():
    assert repr(a_map(SIZE, (2, 5))) == "Covariance(shape=(1, 7, 5, 4))"
