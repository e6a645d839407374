"""Every rule against a slow, independent definition."""

import itertools

import hypothesis.strategies as st
import path_counting
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from torch import nn

import pilcro
from pilcro.second_moments import RULES, Run, SecondMoment, UnsupportedOperation

# --- whole networks against path enumeration -------------------------------------------------


@st.composite
def small_cnns(draw):
    """A stack of up to three convolutions in float64, and an image size that it can take."""
    channels = [draw(st.sampled_from([1, 2]))]
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, channels[-1]]))
        channels.append(groups * draw(st.integers(1, 2)))
        circular = draw(st.booleans())
        layers.append(
            nn.Conv2d(
                channels[-2],
                channels[-1],
                kernel_size=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
                stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 2))),
                padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
                dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
                padding_mode="circular" if circular else "zeros",
                groups=groups,
                bias=draw(st.booleans()),
            ).double()
        )
        if draw(st.booleans()):
            layers.append(nn.ReLU(inplace=draw(st.booleans())))
    seed = draw(st.integers(0, 2**16))
    random = torch.Generator().manual_seed(seed)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, generator=random)
    size = draw(st.tuples(st.integers(3, 7), st.integers(3, 7)))
    return nn.Sequential(*layers), channels[0], size


def as_paths(model, expected):
    found = []
    for layer in model:
        if isinstance(layer, nn.ReLU):
            found[-1].squared = (torch.tensor(found[-1].squared) / 2).double().tolist()
            continue
        squared = layer.weight.detach().square()
        if expected:
            squared = squared.mean().expand_as(squared)
        found.append(
            path_counting.Layer(
                squared.tolist(),
                layer.stride,
                layer.padding,
                layer.padding_mode == "circular",
                layer.dilation,
                layer.groups,
            )
        )
    return found


@settings(max_examples=80, deadline=None)
@given(small_cnns(), st.sampled_from(["expected", "drawn"]))
def test_closed_form_is_the_sum_over_all_paths(case, weights):
    model, channels, size = case
    torch.set_default_dtype(torch.float64)
    try:
        layers = as_paths(model, weights == "expected")
    finally:
        torch.set_default_dtype(torch.float32)
    before = size
    for layer in layers:
        wraps = [p <= n for p, n in zip(layer.padding, before, strict=True)]
        assume(all(wraps) or not layer.circular)  # PyTorch wraps around only once
        before = layer.output_size(before)
        assume(min(before) >= 1)
    assume(path_counting.paths(layers, size) <= 20_000)

    got = pilcro.closed_form(model, size, channels=channels, weights=weights)
    want = torch.tensor(path_counting.importance(layers, size), dtype=torch.float64)
    torch.testing.assert_close(got.importance, want, rtol=1e-12, atol=1e-12 * float(want.max()))
    relu_twice = any(
        isinstance(a, nn.ReLU) and isinstance(b, nn.ReLU)
        for a, b in zip(model, list(model)[1:], strict=False)
    )
    assert got.exact == (not relu_twice)


# --- the counts of one 3x3 layer on a 7x7 image ------------------------------------------------

VALID = [[1, 2, 3], [2, 4, 6], [3, 6, 9]]
SAME = [[4, 6, 6], [6, 9, 9], [6, 9, 9]]
REFLECT = [[4, 8, 6], [8, 16, 12], [6, 12, 9]]
FLAT = [[9] * 3] * 3


def counts(layer, size):
    """Kernel cells per pixel: one weight squared and the mean over outputs taken out."""
    layer = layer.double()
    outputs = layer(torch.zeros(1, 1, size, size).double()).numel()
    found = pilcro.closed_form(layer, size, channels=1).importance
    return found * outputs / layer.weight.detach().square().mean()


@pytest.mark.parametrize(
    ("padding", "mode", "corner"),
    [
        (0, "zeros", VALID),
        (1, "zeros", SAME),
        (1, "reflect", REFLECT),
        (1, "circular", FLAT),
        (1, "replicate", FLAT),
        (2, "zeros", FLAT),
    ],
)
def test_counts_of_kernel_cells(padding, mode, corner):
    layer = nn.Conv2d(1, 1, 3, padding=padding, padding_mode=mode)
    got = counts(layer, 7)
    torch.testing.assert_close(got[:3, :3], torch.tensor(corner).double())
    torch.testing.assert_close(got, got.flip(0))
    torch.testing.assert_close(got, got.T)


@pytest.mark.parametrize(
    ("kernel", "stride", "flat"),
    [(3, 1, True), (3, 2, False), (7, 2, False), (1, 2, False), (2, 2, True), (4, 2, True)],
)
def test_the_interior_is_flat_iff_the_stride_divides_the_kernel(kernel, stride, flat):
    got = counts(nn.Conv2d(1, 1, kernel, stride), 32)[10:22, 10:22]
    assert bool((got == got[0, 0]).all()) == flat


def test_strided_counts():
    three = counts(nn.Conv2d(1, 1, 3, 2), 33)[10:12, 10:12].round()
    assert sorted(three.flatten().tolist()) == [1, 2, 2, 4]
    seven = counts(nn.Conv2d(1, 1, 7, 2), 41)[20:22, 20:22].round()
    assert sorted(seven.flatten().tolist()) == [9, 12, 12, 16]
    one = counts(nn.Conv2d(1, 1, 1, 2), 8).round()
    assert (one == 0).double().mean() == 3 / 4


@pytest.mark.parametrize(("padding", "edge"), [(0, 1 / 3), (1, 2 / 3)])
def test_edge_and_corner_of_one_layer(padding, edge):
    got = counts(nn.Conv2d(1, 1, 3, padding=padding), 15)
    torch.testing.assert_close(float(got[0, 7] / got[7, 7]), edge)
    torch.testing.assert_close(float(got[0, 0] / got[7, 7]), edge**2)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_deficit_reaches_depth_pixels_inwards(depth):
    """A 3x3 "same" layer loses at the outermost pixel, and each layer passes it on by one."""
    model = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(depth)])
    row = pilcro.closed_form(model, 21, channels=1).importance[10]
    short = row < row[10] * (1 - 1e-9)
    assert short.tolist() == [i < depth or i >= 21 - depth for i in range(21)]


@pytest.mark.parametrize(("size", "tilted"), [(224, True), (225, False)])
def test_uneven_strides_tilt_resnet18(size, tilted):
    torchvision = pytest.importorskip("torchvision")
    model = pilcro.draw_network(torchvision.models.resnet18)
    tilt = pilcro.closed_form(model, size).tilt
    assert (max(tilt) > 0.4) if tilted else (max(tilt) < 1e-4)


# --- one rule at a time: for a linear operation, the rule's matrix is its matrix, squared ---------


def moment(values, *, expected=False, zero_mean=True):
    return SecondMoment(values, values.shape, Run(nn.Identity(), expected), zero_mean)


def matrix(function, shape):
    x = torch.zeros(shape, dtype=torch.float64)
    return torch.autograd.functional.jacobian(function, x)


def through(function, **options):
    return lambda values: function(moment(values, **options)).full()


SHAPE = (1, 2, 7, 6)
WEIGHT = torch.randn(4, 2, 3, 2, generator=torch.Generator().manual_seed(1)).double()
GROUPED = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(2)).double()
MATRIX = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)).double()
POSITIVE = torch.rand(2, generator=torch.Generator().manual_seed(4)).double() + 0.5

LINEAR = {
    "conv": lambda x: F.conv2d(x, WEIGHT, None, (2, 1), (1, 0), (1, 2)),
    "conv, same": lambda x: F.conv2d(x, GROUPED, padding="same", groups=2),
    "conv, groups": lambda x: F.conv2d(x, GROUPED, groups=2, padding=1),
    "linear": lambda x: F.linear(x, MATRIX),
    "batch norm": lambda x: F.batch_norm(x, POSITIVE, POSITIVE, POSITIVE, POSITIVE),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, pad not counted": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False),
    "average, ceil, pad not counted": lambda x: F.avg_pool2d(x, 3, 2, 0, True, False),
    "average, divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "global average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average, enlarging": lambda x: F.adaptive_avg_pool2d(x, (9, 6)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "flatten": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(1, 4, -1).contiguous(),
    "cat": lambda x: torch.cat([x, F.pad(x, (0, 0, 0, 0))], 1),
    "cat rows": lambda x: torch.cat([x, x], dim=2),
    "add a constant": lambda x: torch.add(torch.ones(6), 2 + x, alpha=3),
    "add to itself": lambda x: torch.add(x, x, alpha=2),
    "dropout in eval mode": lambda x: F.dropout(x, 0.3, training=False),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_rule_squares_the_matrix(name):
    want = matrix(LINEAR[name], SHAPE).square()
    torch.testing.assert_close(matrix(through(LINEAR[name]), SHAPE), want)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_pixels_adds_up_their_copies(mode):
    """Each copy is read through another weight, so the copies' second moments add."""
    pad = lambda x: F.pad(x, (1, 2, 2, 1), mode=mode)  # noqa: E731
    torch.testing.assert_close(matrix(through(pad), SHAPE), matrix(pad, SHAPE))


def test_batch_norm_in_train_mode_divides_by_the_variance_of_the_forward_pass():
    values = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    x = moment(values)
    out = F.batch_norm(x, None, None, POSITIVE, None, training=True, eps=0.0)
    torch.testing.assert_close(out.full().mean((0, 2, 3)), POSITIVE.square())
    assert "batch statistics" in x.run.reasons[0]


def monte_carlo_matrix(function, shape, draws, positive=False):
    """Mean and standard error of the squared Jacobian over standard normal inputs."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(draws, *shape[1:], generator=random, dtype=torch.float64).requires_grad_()
    x_in = x.abs() if positive else x
    out = function(x_in)
    rows = []
    for unit in range(out[0].numel()):
        (g,) = torch.autograd.grad(out.flatten(1)[:, unit].sum(), x_in, retain_graph=True)
        rows.append(g.square())
    squared = torch.stack(rows, 1)
    return squared.mean(0), squared.std(0) / draws**0.5


GATES = {
    "ReLU": F.relu,
    "max": lambda x: F.max_pool2d(x, 2),
    "max, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, dilated, ceil": lambda x: F.max_pool2d(x, 2, 2, 1, 2, ceil_mode=True),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    "dropout": lambda x: F.dropout(x, 0.3, training=True),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_its_average_over_exchangeable_inputs(name):
    shape = (1, 1, 5, 4)
    with pilcro.untouched.randomness_from(torch.Generator().manual_seed(1), torch.device("cpu")):
        mean, error = monte_carlo_matrix(GATES[name], shape, 4000)
    got = matrix(through(GATES[name]), shape).reshape(mean.shape)
    assert ((got - mean).abs() <= 4.5 * error + 1e-9).all()
    assert (got > 0).any()


# --- what the rules say of themselves ------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MaxPool2d(2), "max pooling"),
        (nn.AdaptiveMaxPool2d(2), "max pooling"),
        (nn.AvgPool2d(2), "average pooling"),
        (nn.AdaptiveAvgPool2d(1), "average pooling"),
        (nn.BatchNorm2d(2), "batch statistics"),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), "ReLU"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)), "variance overestimated"),
    ],
)
def test_an_approximation_is_named_with_its_module(module, reason):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), module)
    found = pilcro.closed_form(model, 8, channels=1)
    assert not found.exact
    assert any(reason in text and text.startswith("1") for text in found.reasons)


def test_a_layer_used_twice_is_named():
    """One weight on two paths: (2w)^2 is not w^2 + w^2 in general, so the result is not exact."""
    layer = nn.Conv2d(2, 2, 3, padding=1)
    found = pilcro.closed_form(nn.Sequential(layer, layer), 8, channels=2)
    assert not found.exact
    assert "used more than once" in found.reasons[0]


SIGNS = [torch.tensor(signs) for signs in itertools.product([-1.0, 1.0], repeat=5)]


@pytest.mark.parametrize(("image", "exact"), [([1.0, 1.5], True), ([0.0, 1.5], False)])
def test_without_biases_gates_above_a_patch_of_zeros_stay_shut(image, exact):
    """Two layers without biases on two pixels, all 32 patterns of signs of their five weights."""
    one, two = (
        nn.Conv2d(1, 1, (1, 2), padding=(0, 1), bias=False),
        nn.Conv2d(1, 1, (1, 3), bias=False),
    )
    net = nn.Sequential(one, nn.ReLU(), two, nn.ReLU())
    total = 0
    for signs in SIGNS:
        one.weight.data = signs[:2].reshape(1, 1, 1, 2) * torch.tensor([0.8, 1.1])
        two.weight.data = signs[2:].reshape(1, 1, 1, 3) * torch.tensor([0.7, 0.9, 1.3])
        total = total + pilcro.on_data(net, torch.tensor([[[image]]])).importance
    closed = pilcro.closed_form(net, (1, 2), channels=1, weights="drawn").importance
    assert torch.allclose(total / len(SIGNS), closed, rtol=1e-6) == exact


def test_windows_of_one_pixel_average_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(6))
    assert pilcro.closed_form(model, 8, channels=1).exact


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.branch(x), inplace=True)
        y += x
        return self.head(torch.cat([y, x], 1))


def test_in_place_operations_and_branches():
    """expected and drawn agree when all weights of a layer have the same size."""
    model = Residual().double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.3)
    expected, drawn = (
        pilcro.closed_form(model, 6, channels=2, weights=w) for w in ("expected", "drawn")
    )
    torch.testing.assert_close(expected.importance, drawn.importance)
    # by hand: I = 0.09 * spread of the head over 3 outputs, x reaches it twice and through y
    centre = pilcro.closed_form(model, 15, channels=2).importance[7, 7] * 15 * 15 * 3
    head, branch = 3 * 9 * 0.09, 2 * 9 * 0.09 / 2
    torch.testing.assert_close(float(centre), 2 * head * (1 + 1 + branch))


def test_in_place_relu_is_seen_by_everyone_who_holds_the_tensor():
    class Aliased(nn.Module):
        def forward(self, x):
            y = torch.flatten(x, 1)
            torch.relu_(y)
            y.add_(1)
            return y

    found = pilcro.closed_form(Aliased(), 2, channels=1)
    torch.testing.assert_close(found.importance, torch.full((2, 2), 0.5 / 4).double())


def test_grouped_convolution_of_unequal_channels():
    """Expected weights keep channels apart when a concatenation made them unequal."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(1, 1, 1)
            self.depthwise = nn.Conv2d(2, 4, 3, groups=2, padding=1)

        def forward(self, x):
            return self.depthwise(torch.cat([x, self.one(self.one(x))], 1))

    model = Net().double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    expected, drawn = (
        pilcro.closed_form(model, 5, channels=1, weights=w) for w in ("expected", "drawn")
    )
    torch.testing.assert_close(expected.importance, drawn.importance)


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_an_operation_without_a_rule_is_named_with_its_module(weights):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.erfinv(x)

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.ReLU(), Odd()))
    with pytest.raises(UnsupportedOperation, match=r"erfinv.*'1\.1'"):
        pilcro.closed_form(model, 4, channels=1, weights=weights)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: torch.cat([x, torch.zeros(1, 1, 4, 4)], 1),
        lambda x: x[:, :1],
        lambda x: torch.ops.aten.sin.default(x),
    ],
)
def test_never_a_silent_guess(forward):
    class Odd(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(UnsupportedOperation):
        pilcro.closed_form(Odd(), 4, channels=1)


def test_a_rule_of_your_own_takes_three_lines():
    class Scaled(nn.Module):
        def forward(self, x):
            return torch.sinc(x)

    try:

        @pilcro.second_moment_rule(torch.sinc)
        def through_sinc(x):
            return x.with_values(x.values * 9)

        found = pilcro.closed_form(Scaled(), 3, channels=1)
    finally:
        RULES.pop(torch.sinc)
    torch.testing.assert_close(found.importance, torch.ones(3, 3).double())


def test_a_forward_pass_may_ask_for_shapes():
    class Asks(nn.Module):
        def forward(self, x):
            assert x.shape == (1, 3, 4, 5) == x.size()
            assert (x.ndim, x.dim(), len(x), x.numel()) == (4, 4, 1, 60)
            assert x.device == torch.device("cpu")
            assert x.is_floating_point()
            assert "(1, 3, 4, 5)" in repr(x)
            return x

    found = pilcro.closed_form(Asks(), (4, 5))
    torch.testing.assert_close(found.importance, torch.full((4, 5), 1 / 20).double())


# --- against sampled networks ---------------------------------------------------------------------


def scaled(*layers):
    """Normal weights with variance 1 / fan in; the constant network has exactly that W^2."""

    def build():
        model = nn.Sequential(*[layer() for layer in layers])
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            nn.init.normal_(parameter, std=fan_in**-0.5)
        return model

    constant = build()
    for parameter in constant.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.constant_(parameter, fan_in**-0.5)
    return build, constant


EXACT = {
    "same": (lambda: nn.Conv2d(2, 4, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(4, 3, 3)),
    "strided": (lambda: nn.Conv2d(2, 5, 3, 2, 1), nn.ReLU, lambda: nn.Conv2d(5, 4, 3, 2, 1)),
    "reflect": (
        lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU,
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ),
    "with a head": (
        lambda: nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(4 * 64, 10),
        nn.ReLU,
        lambda: nn.Linear(10, 3),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_closed_form_within_the_standard_error_of_monte_carlo(name, generator):
    build, constant = scaled(*EXACT[name])
    sampled = pilcro.monte_carlo(build, 8, channels=2, networks=400, generator=generator)
    closed = pilcro.closed_form(constant, 8, channels=2)
    assert closed.exact
    z = (closed.importance - sampled.importance) / sampled.standard_error
    assert z.abs().max() < 4
    relative = sampled.standard_error / sampled.importance
    assert relative.max() < 0.15, "the comparison must be able to fail"
