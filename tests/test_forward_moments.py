"""The forward pass: E[z^2], E[z z'] of two images, E[z], against integrals and fresh networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn

import pilcro
from pilcro.propagate import propagate
from pilcro.quadrature import expected_squares, series, tabulated
from pilcro.rules.activations import rectified
from pilcro.second_moments import Run, white_noise, written

DOUBLE = torch.float64


def number(value):
    return torch.tensor(value, dtype=DOUBLE)


# --- two correlated normal numbers ---------------------------------------------------------------


def plane(second, shared, mean, nodes=1500):
    """u and v on a grid, and their density: E[u^2], E[u v] and E[u] as given, by midpoints."""
    variance = second - mean**2
    rho = (shared - mean**2) / variance
    step = 14 / nodes
    t = (torch.arange(nodes, dtype=DOUBLE) + 0.5) * step - 7
    one, other = torch.meshgrid(t, t, indexing="ij")
    density = torch.exp(-(one.square() + other.square()) / 2) * step**2 / (2 * math.pi)
    u = mean + math.sqrt(variance) * one
    v = mean + math.sqrt(variance) * (rho * one + math.sqrt(1 - rho**2) * other)
    return u, v, density


@pytest.mark.parametrize("mean", [-2.0, -0.5, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8, 0.95])
def test_a_rectified_normal_number(mean, rho):
    got = rectified(number(rho), number(mean))
    u, v, density = plane(1 + mean**2, rho + mean**2, mean)
    want = [
        ((u > 0) * density).sum(),
        (u.relu().square() * density).sum(),
        (u.relu() * v.relu() * density).sum(),
        (u.relu() * density).sum(),
    ]
    # the edge of the gate falls between nodes; the series puts what is left behind four terms
    # into one, 1 % of the square at most
    for value, integral, room in zip(got, want, (0, 0, 1e-2, 0), strict=True):
        torch.testing.assert_close(
            float(value),
            float(integral),
            rtol=2e-3,
            atol=float(room * want[1]) + 2e-3 * (value is got[0]) + 1e-4,
        )


@pytest.mark.parametrize("mean", [0.0, 1.0, -1.0])
def test_two_equal_images_share_everything(mean):
    _, square, product, _ = rectified(number(1.0), number(mean))
    torch.testing.assert_close(product, square)


ACTIVATIONS = [F.gelu, F.silu, F.relu, torch.tanh, torch.sigmoid, F.hardswish, F.elu]


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("q", [0.2, 3.0])
def test_products_of_activations(function, q):
    for rho in (0.0, 0.4, 0.9):
        u, v, density = plane(q, rho * q, 0.0)
        product = (function(u) * function(v) * density).sum()
        mean = (function(u) * density).sum()
        square = (function(u).square() * density).sum()
        got = series(tabulated(function, number(q)), number(rho))
        torch.testing.assert_close(float(got), float(product), rtol=1e-3, atol=float(1e-2 * square))
        got = tabulated(function, number(q))(2)
        torch.testing.assert_close(float(got), float(mean), rtol=1e-3, atol=1e-5)
    value, _ = expected_squares(function, number(q))
    equal = series(tabulated(function, number(q)), number(1.0))
    torch.testing.assert_close(equal, value, rtol=1e-4, atol=0)  # as the table


def test_weights_that_are_no_numbers_are_named_behind_an_activation():
    layer = nn.Conv2d(1, 1, 1)
    nn.init.constant_(layer.weight, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        pilcro.closed_form(nn.Sequential(layer, nn.GELU()), 3, channels=1)


# --- whole networks against fresh ones -----------------------------------------------------------

WIDTH, SIZE = 24, 6


def conv(before=WIDTH, kernel=3):
    return nn.Conv2d(before, WIDTH, kernel, padding=kernel // 2)


def norm(training):
    return lambda: nn.BatchNorm2d(WIDTH).train(training)


def chain(*functions):
    """Run them one after the other and return everything in between."""

    def forward(x, *layers):
        layers, seen = iter(layers), []
        for function in functions:
            x = next(layers)(x) if function is next else function(x)
            seen.append(x)
        return seen

    return forward


def pre_activation(x, a, n, b, m, c):
    h = a(x)
    r = h + b(F.relu(n(h)))
    return [h, r, c(F.relu(m(r)))]


def residual(x, a, b, c):
    h = F.relu(a(x))
    r = F.relu(h + b(h))
    return [h, r, c(r)]


def gated(x, a, b, c):
    h = F.gelu(a(x))
    g = torch.sigmoid(c(F.adaptive_avg_pool2d(h, 1)))
    return [h, g, b(h) * g]


def joined(x, a, b, c):
    h = torch.cat([a(x), F.relu(b(x))], 1)
    return [h, F.relu(h), c(F.relu(h))]


# (forward, layers, room for what is only approximate, relative)
FORWARD = {
    "conv and ReLU": (chain(next, F.relu, next, F.relu, next), [conv, conv, conv], 0.03),
    "batch norm in eval mode": (
        chain(next, next, F.relu, next),
        [conv, norm(False), conv],
        0.03,
    ),
    "batch norm in train mode": (
        chain(next, next, F.relu, next, next, F.relu),
        [conv, norm(True), conv, norm(True)],
        0.1,
    ),
    "residual": (residual, [conv, conv, conv], 0.1),
    "pre-activation": (pre_activation, [conv, norm(True), conv, norm(True), conv], 0.1),
    "average pool": (
        chain(next, F.relu, lambda x: F.avg_pool2d(x, 2), next, F.relu),
        [conv, conv],
        0.05,
    ),
    "global average pool": (
        chain(next, F.relu, lambda x: F.adaptive_avg_pool2d(x, 1), next),
        [conv, lambda: conv(kernel=1)],
        0.05,
    ),
    "GELU": (chain(next, F.gelu, next, F.gelu), [conv, conv], 0.05),
    "concatenation": (joined, [conv, conv, lambda: conv(2 * WIDTH)], 0.08),
    "gate": (gated, [conv, conv, lambda: conv(kernel=1)], 0.1),
    "layer norm of channels": (
        chain(next, F.relu, lambda x: F.layer_norm(x.movedim(1, 3), [WIDTH])),
        [conv],
        0.03,
    ),
    "sum of two ReLUs": (
        lambda x, a, b: [F.relu(a(x)) + F.relu(b(x)), F.relu(a(x)) - F.relu(b(x))],
        [conv, conv],
        0.03,
    ),
    "one minus a gate": (
        chain(next, torch.sigmoid, lambda x: 1 - x, next),
        [conv, conv],
        0.05,
    ),
    "shifted, then rectified": (
        chain(next, lambda x: 1 - x, F.relu, lambda x: x - 0.5, F.relu),
        [conv],
        0.12,
    ),
}


def built(name, fill):
    function, layers, _ = FORWARD[name]
    net = Net(function, *(layer() for layer in layers))
    for layer in net.layers:
        if isinstance(layer, nn.Conv2d):
            fill(layer.weight, (1.5 / layer.weight[0].numel()) ** 0.5)
            fill(layer.bias, 0.4)
    return net


def measured(name, networks=150, images=8):
    """Per layer (3, networks): mean over channels and positions of z^2, z z' and z."""
    build = lambda: built(name, lambda t, size: nn.init.normal_(t, std=size))  # noqa: E731
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(networks):
        net = pilcro.draw_network(build, random)
        with torch.no_grad():
            outputs = net(torch.randn(images, WIDTH, SIZE, SIZE, generator=random))
        found.append([statistics(z) for z in outputs])
    return torch.tensor(found, dtype=DOUBLE).permute(1, 2, 0)


def statistics(z):
    n, square = len(z), z.square().mean()
    product = (z.mean(0).square() - z.square().mean(0) / n).mean() * n / (n - 1)
    return [float(square), float(product), float(z.mean())]


@pytest.mark.parametrize("name", FORWARD)
def test_moments_of_the_forward_pass(name):
    """Second, shared and mean at every layer, within 4 standard errors and the room above."""
    room = FORWARD[name][2]
    net = built(name, lambda tensor, size: nn.init.constant_(tensor, size))
    ones = torch.ones(1, 1, SIZE, SIZE, dtype=DOUBLE)
    with torch.no_grad():
        outputs = net(white_noise(ones, (1, WIDTH, SIZE, SIZE), Run(net, expected=True)))
    for layer, (out, sample) in enumerate(zip(outputs, measured(name), strict=True)):
        mean, error = sample.mean(1), sample.std(1) / sample.shape[1] ** 0.5
        moments = (out.second(), out.shared(), out.average())
        got = [written(values, out.shape).mean() for values in moments]
        scale = torch.tensor([mean[0], mean[0], mean[0].sqrt()])
        off = (torch.stack(got) - mean).abs() - 4 * error
        assert (off <= room * scale).all(), (layer, got, mean, error)


def test_batch_norm_in_train_mode_keeps_the_level_of_resnet18(generator):
    torchvision = pytest.importorskip("torchvision")
    build = torchvision.models.resnet18
    closed = pilcro.closed_form(pilcro.draw_network(build), 96).importance.mean()
    sampled = pilcro.monte_carlo(build, 96, networks=4, generator=generator).importance.mean()
    assert 0.5 < closed / sampled < 2


# --- gradients with respect to the weights -------------------------------------------------------


def mixed(x, a, n, b, m, c):
    h = F.relu(n(a(x)))
    h = h + b(h)
    h = F.avg_pool2d(F.relu(m(h)), 2)
    return F.adaptive_avg_pool2d(c(F.gelu(h)), 1)


def attend(t, *layers):
    """Normalised, so that the length of what attention gives matters."""
    return F.layer_norm(F.scaled_dot_product_attention(*(layer(t) for layer in layers)), [4])


def tiny(before, after):
    return nn.Conv2d(before, after, 3, padding=1).double()


def tiny_norm():
    return nn.BatchNorm2d(3).double()


DIFFERENTIABLE = {
    "mixed": lambda: Net(mixed, tiny(1, 3), tiny_norm(), tiny(3, 3), tiny_norm(), tiny(3, 2)),
    "ReLU": lambda: Net(lambda x, a, b: b(F.relu(a(x))), tiny(1, 3), tiny(3, 2)),
    "batch norm": lambda: Net(
        lambda x, a, n, b: b(F.relu(n(a(x)))), tiny(1, 3), tiny_norm(), tiny(3, 2)
    ),
    "ReLU of a sum": lambda: Net(
        lambda x, a, b: F.relu(F.relu(a(x)) + F.relu(b(x))), tiny(1, 3), tiny(1, 3)
    ),
    "GELU of one scale": lambda: Net(
        lambda x, a: F.gelu(a(x)), nn.Conv2d(1, 1, 1, bias=False).double()
    ),
    "attention": lambda: Net(
        lambda x, a, q, k, v: attend(a(x).flatten(2).transpose(1, 2), q, k, v),
        tiny(1, 4),
        *(nn.Linear(4, 4).double() for _ in range(3)),
    ),
    "SiLU": lambda: Net(lambda x, a, b: b(F.silu(a(x))), tiny(1, 3), tiny(3, 2)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_the_landscape_against_finite_differences(name):
    """Of a weighted sum of pixels, in a random direction for each parameter; tables of activations
    have slopes of chords, to 3 %."""
    net = pilcro.draw_network(DIFFERENTIABLE[name])
    random = torch.Generator().manual_seed(1)
    pixels = torch.rand(4, 4, generator=random, dtype=DOUBLE)

    def objective(differentiable):
        found, _ = propagate(net, (4, 4), 1, expected=False, differentiable=differentiable)
        return (found * pixels).sum().log()

    parameters = [p for p in net.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(objective(True), parameters)
    tolerance = 3e-2 if "LU of one" in name or name in ("mixed", "SiLU") else 1e-4
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=random, dtype=DOUBLE)
        found, step = [], 1e-4
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            found.append(float(objective(False)))
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        want = (found[0] - found[1]) / (2 * step)
        got = float((gradient * direction).sum())
        size = float(gradient.norm() * direction.norm())
        assert abs(got - want) < tolerance * size
        assert size > 1e-3


def test_no_graph_is_kept_unless_it_is_asked_for():
    net = DIFFERENTIABLE["mixed"]()
    without, _ = propagate(net, (4, 4), 1, expected=False)
    kept, _ = propagate(net, (4, 4), 1, expected=False, differentiable=True)
    assert without.grad_fn is None
    assert kept.grad_fn is not None
    torch.testing.assert_close(without, kept.detach())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_the_closed_form_leaves_no_gradients(weights):
    net = DIFFERENTIABLE["mixed"]()
    pilcro.closed_form(net, 4, channels=1, weights=weights)
    assert all(parameter.grad is None for parameter in net.parameters())
