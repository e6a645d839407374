"""Every rule against a slow, independent definition."""

import itertools

import hypothesis.strategies as st
import path_counting
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from networks import moment
from torch import nn

import pilcro
from pilcro.second_moments import RULES, UnsupportedOperation

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


# --- one rule at a time: for a linear operation, the rule's matrix is its matrix, squared ---------


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
    "mean over positions": lambda x: x.mean([2, 3]),
    "mean over a row": lambda x: torch.mean(x, -1, keepdim=True),
    "mean over everything": lambda x: x.mean(),
    "mean over channels": lambda x: x.mean(1),
    "transpose": lambda x: x.transpose(1, 2),
    "permute and back": lambda x: torch.permute(x, (0, 2, 3, 1))[:, 1:, :, 0],
    "chunk": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], 1),
    "split": lambda x: torch.split(x, [3, 4], 2)[1],
    "roll": lambda x: torch.roll(x, 2, 3).unsqueeze(0).squeeze(0),
    "channel shuffle": lambda x: (
        x.view(1, 2, 1, 7, 6).transpose(1, 2).contiguous().view(1, 2, 7, 6)
    ),
    "times a number": lambda x: 3 * x / 2,
    "times a tensor": lambda x: x * torch.arange(6.0) / torch.tensor(0.5),
    "minus": lambda x: torch.sub(5 - x, torch.ones(6)),
    "in-place": lambda x: x.clone().mul_(2),
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


def test_layer_norm_divides_by_the_variance_of_the_forward_pass():
    values = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    x = moment(values)
    out = F.layer_norm(x, [7, 6], 2 * torch.ones(7, 6).double(), None, eps=0.0).full()
    torch.testing.assert_close(out.mean((2, 3)), torch.full((1, 2), 4.0).double())
    assert "layer norm" in x.run.reasons[0]


def test_second_moments_of_independent_factors_multiply():
    """E[(d(uv)/du)^2] = E[v^2]: the product rule carries both ways."""

    def product(values):
        u, v = moment(values).chunk(2, dim=1)
        return (u * v).full()

    values = torch.tensor([[2.0, 5.0]]).double()
    assert product(values).item() == 10
    jacobian = torch.autograd.functional.jacobian(product, values)
    assert jacobian.flatten().tolist() == [5.0, 2.0]


def test_an_activation_passes_on_its_value_and_sends_back_its_slope():
    values = torch.full((1, 1, 2, 2), 3.0).double()
    value, slope = pilcro.quadrature.expected_squares(F.silu, values)
    out = through(F.silu)
    torch.testing.assert_close(out(values), value)
    jacobian = torch.autograd.functional.jacobian(out, values).reshape(4, 4)
    torch.testing.assert_close(jacobian, torch.diag(slope.flatten()))
    x = moment(values)
    assert F.hardswish(x, inplace=True) is x


def test_activations_with_other_arguments_are_others():
    """E[f'^2] of a leaky ReLU is that of its two slopes; tables are kept within a run."""
    x = moment(torch.ones(1, 1, 2, 2).double())
    for slope in (0.1, 0.5, -0.3):
        found = F.leaky_relu(x, negative_slope=slope).full()
        want = torch.full((1, 1, 2, 2), (1 + slope**2) / 2).double()
        torch.testing.assert_close(found, want, rtol=1e-4, atol=0)


def test_normalize_divides_by_the_length_of_the_forward_pass():
    """With many features the length hardly varies: sampled, within its error and one over them."""
    features = 400
    scale = torch.linspace(0.5, 2, features).double()
    got = F.normalize(moment(scale.square()[None]), dim=1).full()[0]
    random = torch.Generator().manual_seed(0)
    drawn = scale * torch.randn(2000, features, generator=random, dtype=torch.float64)
    squares = F.normalize(drawn, dim=1).square()
    error = squares.std(0) / len(squares) ** 0.5
    assert ((got - squares.mean(0)).abs() < 4.5 * error + 4 / features * got).all()
    with pytest.raises(pilcro.UnsupportedOperation, match="p=1"):
        F.normalize(moment(scale[None]), p=1.0)


def test_layer_norm_over_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected \(\.\.\., .*5.*got \(1, 1, 4, 4\)"):
        pilcro.closed_form(nn.LayerNorm([5, 4]), 4, channels=1)


def test_stochastic_depth_in_training_is_its_average_over_masks(generator):
    """A branch that is there with probability 1 - p, and then divided by it."""
    ops = pytest.importorskip("torchvision.ops")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)

        def forward(self, x):
            return x + ops.stochastic_depth(self.conv(x), 0.4, "row", training=True)

    def build():
        model = Net().train()
        nn.init.normal_(model.conv.weight, std=0.5)
        return model

    constant = Net().train()
    nn.init.constant_(constant.conv.weight, 0.5)
    closed = pilcro.closed_form(constant, 4, channels=1)
    sampled = pilcro.monte_carlo(build, 4, channels=1, networks=2000, generator=generator)
    z = (closed.importance - sampled.importance) / sampled.standard_error
    assert z.abs().max() < 4.5


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
    ],
)
def test_an_approximation_is_named_with_its_module(module, reason):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), module)
    found = pilcro.closed_form(model, 8, channels=1, covariances=False)
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


# --- additions: exact if a change of sign of one branch is none of the other --------------------


class Branches(nn.Module):
    """``join`` is handed the input and four layers of its own."""

    def __init__(self, join, padding=1):
        super().__init__()
        self.join = join
        self.layers = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=padding) for _ in range(4))

    def forward(self, x):
        return self.join(x, *self.layers)


ADDITIONS = {  # name: (join, exact); None: approximate, but not by much
    "shortcut": (lambda x, a, b, c, d: x + b(F.relu(a(x))), True),
    "two layers": (lambda x, a, b, c, d: d(F.relu(a(x) + b(x))), True),
    "shortcut behind a layer": (lambda x, a, b, c, d: d(F.relu(a(x)) + c(F.relu(b(x)))), True),
    "input and its ReLU": (lambda x, a, b, c, d: x + F.relu(x), False),
    "a tensor and its ReLU": (lambda x, a, b, c, d: d(sum_with_relu(a(x))), False),
    "three times": (lambda x, a, b, c, d: x + x + x, False),
    "a view of itself": (lambda x, a, b, c, d: x + x.view(x.shape), False),
    "two ReLUs": (lambda x, a, b, c, d: F.relu(a(x)) + F.relu(b(x)), None),
    "one layer twice": (lambda x, a, b, c, d: a(x) + a(F.relu(b(x))), None),
    "ReLU of pre-activation residual": (
        lambda x, a, b, c, d: d(F.relu(pre_activation(a(x), b))),
        None,
    ),
}


def sum_with_relu(x):
    return x + F.relu(x)


def pre_activation(x, layer):
    return x + layer(F.relu(x))


@pytest.mark.parametrize("name", ADDITIONS)
def test_additions_are_exact_only_if_monte_carlo_agrees(name, generator):
    join, exact = ADDITIONS[name]

    def build():
        model = Branches(join)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.25)
        return model

    constant = build()
    for parameter in constant.parameters():
        nn.init.constant_(parameter, 0.25)
    closed = pilcro.closed_form(constant, 4, channels=2)
    assert closed.exact == bool(exact), closed.reasons
    sampled = pilcro.monte_carlo(build, 4, channels=2, networks=600, generator=generator)
    z = (closed.importance - sampled.importance) / sampled.standard_error
    if exact:
        assert z.abs().max() < 4
    elif exact is False:
        assert z.min() < -4, "the rule is right where it says that it is not"
    else:
        assert (closed.importance / sampled.importance - 1).abs().max() < 0.15  # approximate


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * torch.ones(4, 4), "not a parameter"),
        (lambda x: x * torch.sigmoid(x), "product"),
        (lambda x: F.layer_norm(F.relu(x), [4, 4]), "layer norm"),
        (F.gelu, "gelu"),
    ],
)
def test_what_a_rule_takes_for_granted_is_named(change, reason):
    class Net(nn.Module):
        def forward(self, x):
            return change(x)

    assert any(reason in text for text in pilcro.closed_form(Net(), 4, channels=1).reasons)


@pytest.mark.parametrize("swap", [True, False])
def test_a_product_has_the_symmetry_of_either_factor(swap):
    """relu(a) b changes its sign with the weights of b: a ReLU behind it is open half the time."""

    def join(x, a, b, c, d):
        factors = [F.relu(a(x)), b(x)]
        return F.relu(factors[swap] * factors[not swap])

    reasons = pilcro.closed_form(Branches(join), 4, channels=2).reasons
    assert len(reasons) == 1
    assert "product" in reasons[0]


# --- weights that are not fresh parameters ---------------------------------------------------


class Functional(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, 3, 3))
        self.function = forward

    def forward(self, x):
        return self.function(x, self.weight)


@pytest.mark.parametrize("compute", [lambda w: w.flip(2), lambda w: w * 1, lambda w: w[:1]])
@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_computed_weights_are_named(compute, weights):
    model = Functional(lambda x, w: F.conv2d(x, compute(w)))
    found = pilcro.closed_form(model, 6, channels=2, weights=weights)
    assert not found.exact
    assert "computed" in found.reasons[0]


def test_different_normalised_layers_are_not_taken_for_one():
    layers = [nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)) for _ in range(5)]
    found = pilcro.closed_form(nn.Sequential(*layers), 16, channels=2, weights="drawn")
    assert not any("more than once" in reason for reason in found.reasons)
    assert sum("computed" in reason for reason in found.reasons) == 5


# --- expected and drawn agree where all weights of a layer have one size ----------------------


def constant_layers(model, value=0.5):
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, value)
    return model


class UnequalGroups(nn.Module):
    """Two groups that a concatenation made unequal, through two grouped layers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(2, 2, 1)
        self.first, self.second = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3, groups=2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.second(self.first(torch.cat([x, self.one(self.one(x))], 1))))


class FirstGroup(UnequalGroups):
    """What is left of it sees the image and nothing of the layers behind it."""

    def forward(self, x):
        return self.first(torch.cat([x, self.one(self.one(x))], 1))[:, :2]


def unequal_norm():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var.copy_(torch.tensor([0.1, 10.0]))
    norm.weight.data.copy_(torch.tensor([1.0, 3.0]))
    return nn.Sequential(nn.Conv2d(2, 2, 3), norm, nn.Conv2d(2, 2, 3))


@pytest.mark.parametrize(
    "model",
    [
        UnequalGroups(),
        FirstGroup(),
        unequal_norm(),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 6), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Flatten()),
        nn.Sequential(nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(2, 3, 3), nn.MaxPool2d(3)),
    ],
)
def test_expected_and_drawn_agree_for_constant_weights(model):
    model = constant_layers(model).double()
    expected, drawn = (
        pilcro.closed_form(model, 6, channels=2, weights=w) for w in ("expected", "drawn")
    )
    torch.testing.assert_close(expected.importance, drawn.importance)


def test_expected_is_the_mean_of_drawn(generator):
    """Level included, over fresh networks."""
    build = scaled(*EXACT["strided"])[0]
    both = []
    for _ in range(200):
        net = pilcro.draw_network(build, generator).double()
        both.append(
            [
                pilcro.closed_form(net, 8, channels=2, weights=w).importance
                for w in ("expected", "drawn")
            ]
        )
    difference = torch.stack([one - other for one, other in both])
    z = difference.mean(0) / (difference.std(0) / 200**0.5)
    assert z.abs().max() < 4


# --- batch norm, in-place changes, precision -----------------------------------------------------


@pytest.mark.parametrize("what", ["running_mean", "bias"])
def test_a_shift_in_batch_norm_leaves_gates_uneven(what):
    norm = nn.BatchNorm2d(2).eval()
    model = nn.Sequential(nn.Conv2d(2, 2, 3), norm, nn.ReLU())
    assert pilcro.closed_form(model, 6, channels=2).exact
    with torch.no_grad():
        getattr(norm, what).fill_(1.0)
    found = pilcro.closed_form(model, 6, channels=2)
    assert "symmetric" in found.reasons[0]


def test_in_place_change_of_a_view_is_named():
    class Net(nn.Module):
        def forward(self, x):
            F.relu_(x.view(1, -1))
            return x

    found = pilcro.closed_form(Net(), 3, channels=1)
    assert "view" in found.reasons[0]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda x: F.relu(torch.flatten(F.relu(x), 1)), 1),
        (lambda x: F.relu(x + 1), 1),
        (lambda x: F.relu(x + 0), 0),
        (lambda x: F.relu(torch.cat([F.relu(x), x], 1)), 1),
        (lambda x: F.relu(F.batch_norm(F.relu(x), None, None, training=True)), 2),
        (lambda x: F.relu(F.max_pool2d(x, 2)), 2),
        (lambda x: F.relu(F.pad(x, (1, 1), value=2.0)), 1),
        (lambda x: F.relu(F.pad(x, (1, 1))), 0),
        (lambda x: F.relu(F.relu(x.clone(), inplace=True)), 1),
        (lambda x: F.relu(x.float().contiguous().to(torch.float64)), 0),
        (lambda x: F.adaptive_avg_pool2d(x, (6, 5)), 0),
        (lambda x: F.adaptive_avg_pool2d(x, (5, 5)), 1),
    ],
)
def test_reasons_are_counted(change, reasons):
    class Net(nn.Module):
        def forward(self, x):
            return change(x)

    found = pilcro.closed_form(Net(), (6, 5), channels=1, covariances=False)
    assert len(found.reasons) == reasons


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_do_not_vanish(dtype):
    build = lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(12)])  # noqa: E731
    single = pilcro.draw_network(build)
    want = pilcro.closed_form(single, 8, weights="drawn").importance
    got = pilcro.closed_form(single.to(dtype), 8, weights="drawn").importance
    torch.testing.assert_close(got, want, rtol=0.1, atol=0)


def test_dropout_scales_by_what_it_keeps():
    for inplace in (False, True):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=inplace))
        found = pilcro.closed_form(model, 2, channels=1).importance
        torch.testing.assert_close(found, torch.full((2, 2), 2 / 4).double())
    gone = pilcro.closed_form(nn.Dropout(1.0), 2, channels=1).importance
    assert (gone == 0).all()


def test_additions_with_alpha_and_in_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.one.weight, 1.0)

        def forward(self, x):
            y = torch.add(x, self.one(x), alpha=2)  # 1 + 4
            z = y
            y.add_(x)  # 5 + 1, seen through both names
            return z

    found = pilcro.closed_form(Net(), 1, channels=1).importance
    torch.testing.assert_close(found, torch.full((1, 1), 6.0).double())


def test_batch_norm_takes_out_what_the_batch_shares():
    class Net(nn.Module):
        def forward(self, x):
            return F.batch_norm(2 * x + 3, None, None, training=True, eps=0.0)

    found = pilcro.closed_form(Net(), 1, channels=1).importance
    torch.testing.assert_close(found, torch.full((1, 1), 1.0).double())


def test_batch_norm_without_affine_checks_its_channels():
    with pytest.raises(ValueError, match="expected 2 channels, got 3"):
        pilcro.closed_form(nn.BatchNorm2d(2, affine=False), 4)


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


def slips_past(x):
    with torch._C.DisableTorchFunctionSubclass():
        return torch.sin(x)


@pytest.mark.parametrize(
    "forward",
    [
        slips_past,
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: torch.ones(1, 1, 4, 4).mul_(x),
        lambda x: torch.ones(1, 1, 4, 4) / x,
        lambda x: torch.ops.aten.sin.default(x),
        lambda x: F.conv2d(x, torch.ones(2, 1, 1, 1), x.view(-1)[:2]),
        lambda x: F.conv2d(x, torch.ones(2, 1, 1, 1), torch.flatten(x)),
        lambda x: F.linear(torch.ones(1, 16), torch.flatten(x, 1)),
        lambda x: torch.ones(1, 1, 4, 4).add_(x),
        lambda x: torch.cat([x, x], axis=1),
        lambda x: torch.add(x, x, out=torch.ones(1, 1, 4, 4)),
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
            return x.through(lambda moments: 9 * moments)

        found = pilcro.closed_form(Scaled(), 3, channels=1)
    finally:
        RULES.pop(torch.sinc)
    torch.testing.assert_close(found.importance, torch.ones(3, 3).double())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_weights_that_are_not_real_numbers_are_refused(dtype):
    weight = torch.ones(1, 1, 2, 2, dtype=dtype)

    class Net(nn.Module):
        def forward(self, x):
            return F.conv2d(x, weight)

    with pytest.raises(UnsupportedOperation, match=f"weights of type {dtype}"):
        pilcro.closed_form(Net(), 4, channels=1)


def test_arguments_by_name():
    class Net(nn.Module):
        def forward(self, x):
            return torch.flatten(
                input=F.conv2d(input=x, weight=torch.ones(1, 1, 2, 2)), start_dim=1
            )

    assert pilcro.closed_form(Net(), 3, channels=1).importance[1, 1] == 4 / 4


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


def test_the_shape_agrees_with_sampled_mobilenets(generator):
    torchvision = pytest.importorskip("torchvision")
    build = lambda: torchvision.models.mobilenet_v2(dropout=0.0)  # noqa: E731
    sampled = pilcro.monte_carlo(build, 64, networks=24, generator=generator)
    closed = pilcro.closed_form(build(), 64)
    maps = [F.avg_pool2d(x.importance[None, None], 4).flatten() for x in (sampled, closed)]
    assert torch.corrcoef(torch.stack(maps))[0, 1] > 0.98


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


def test_a_rule_without_a_mean_says_so_where_one_is_needed():
    """abs does not change its sign with its input; batch norm needs what images share of it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(torch.abs(self.conv(x)))

    try:

        @pilcro.second_moment_rule(torch.abs)
        def through_abs(x):
            return x.through(lambda moments: moments, symmetric=False)

        found = pilcro.closed_form(Net(), 8, channels=1)
    finally:
        RULES.pop(torch.abs)
    assert "norm: an operation before it has a rule that does not give its mean" in found.reasons
