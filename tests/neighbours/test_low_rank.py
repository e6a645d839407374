"""The low-rank layer against its definition, and between a convolution and local connection."""

import copy
import itertools
import math

import hypothesis.strategies as st
import pytest
import slowly
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import noise, seeded
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pilcro import PObjective, draw_network
from pilcro.neighbours import (
    LocallyConnected2d,
    LowRankLocallyConnected2d,
    locally_connected2d,
    low_rank_conv2d,
)
from pilcro.neighbours.locally_connected import convolved_size
from pilcro.neighbours.low_rank import COMBINE, NORMALISED

TABLES = [combine for combine in COMBINE if combine != "input"]


def layer(*args, seed=0, random_tables=True, **options):
    """In double precision; with parameters that are all random, or as it starts."""
    new = draw_network(lambda: LowRankLocallyConnected2d(*args, **options), seeded(seed)).double()
    return slowly.randomised(new, seeded(seed)) if random_tables else new


@st.composite
def geometries(draw):
    """Pixels of an image, and kernel, stride, padding and dilation that fit it."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    geometry = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 2))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 1))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    }
    least = [(k - 1) * d + 1 for k, d in zip(kernel, geometry["dilation"], strict=True)]
    pixels = [n + draw(st.integers(0, 4)) for n in least]
    return pixels, kernel, geometry


# --- what it computes ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 99))
def test_it_is_its_definition(shape, rank, channels, width, seed):
    pixels, kernel, geometry = shape
    size = F.conv2d(torch.zeros(1, 1, *pixels), torch.zeros(1, 1, *kernel), **geometry).shape[2:]
    assert convolved_size(pixels, kernel, **geometry) == tuple(size)
    x = noise(2, channels, *pixels, seed=seed)
    weight = noise(rank * width, channels, *kernel, seed=seed + 1)
    combining = noise(rank, *size, seed=seed + 2)
    got = low_rank_conv2d(x, weight, combining, None, None, **geometry)
    torch.testing.assert_close(got, slowly.low_rank(x, weight, combining, **geometry))


@pytest.mark.parametrize("combine", TABLES)
@pytest.mark.parametrize("normalisation", NORMALISED)
def test_it_equals_its_materialised_layer(combine, normalisation):
    """In single precision, with all its biases: the layer itself, and unfold by hand."""
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    options = {"combine": combine, "normalisation": normalisation, **geometry}
    low_rank = layer(3, 4, 3, (4, 7), 3, **options).float()
    local = LocallyConnected2d(3, 4, 3, (4, 7), **geometry)
    with torch.no_grad():
        spatial = sum(low_rank.spatial_biases.values())
        local.weight.copy_(low_rank.materialise())
        local.bias.copy_(low_rank.bias[:, None, None] + spatial)
        x = noise(2, 3, 7, 7).float()
        torch.testing.assert_close(low_rank(x), local(x), rtol=1e-5, atol=1e-5)

        patches = F.unfold(x, 3, (1, 2), (1, 2), (2, 1)).unflatten(2, (4, 7))
        kernels = low_rank.materialise().flatten(3)
        by_hand = (kernels.permute(2, 3, 0, 1) * patches[:, None]).sum(2) + local.bias
        torch.testing.assert_close(low_rank(x), by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISED)
def test_rank_one_with_a_constant_table_is_a_convolution(normalisation):
    """The table is 1 at the start, whatever the normalisation."""
    options = {"stride": 2, "padding": 1, "dilation": 2}
    low_rank = layer(2, 4, 3, 4, 1, random_tables=False, normalisation=normalisation, **options)
    conv = nn.Conv2d(2, 4, 3, **options).double()
    conv.load_state_dict({"weight": low_rank.weight, "bias": nn.init.normal_(low_rank.bias)})
    x = noise(2, 2, 9, 9)
    torch.testing.assert_close(low_rank(x), conv(x))


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("normalisation", NORMALISED)
def test_it_starts_as_one_convolution(combine, normalisation):
    """Whose weights have the variance of He's, or with a softmax 1 / rank of it."""
    rank, options = 4, {"combine": combine, "normalisation": normalisation}
    low_rank = layer(32, 8, 3, 5, rank, random_tables=False, **options)
    x = noise(2, 32, 7, 7)
    constant = 1 / rank if normalisation == "softmax" else rank**-0.5
    kernel = constant * low_rank.weight.unflatten(0, (rank, 8)).sum(0)
    torch.testing.assert_close(low_rank(x), F.conv2d(x, kernel))
    he = 2 / (32 * 9)
    want = he / rank if normalisation == "softmax" else he
    assert kernel.var().item() == pytest.approx(want, rel=0.1)  # 2304 weights: 3 % off, say
    assert low_rank.weight.abs().max() <= (3 * he) ** 0.5  # uniform


def test_the_first_step_of_training_leaves_the_convolution():
    """Nothing is at a saddle: banks differ, so tables get gradients that differ with position."""
    for combine, normalisation in itertools.product(TABLES, NORMALISED):
        options = {"combine": combine, "normalisation": normalisation}
        low_rank = layer(2, 3, 3, 4, 2, random_tables=False, **options)
        low_rank(noise(2, 2, 6, 6)).square().sum().backward()
        for table in low_rank.tables.values():
            assert (table.grad.flatten(1).std(1) > 1e-3).all()


# --- combining weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("combine", TABLES)
def test_tables_and_normalisations(combine):
    made = {
        name: layer(1, 1, 1, (3, 4), 2, combine=combine, normalisation=name) for name in NORMALISED
    }
    raw = made["none"].combining()
    assert raw.shape == (2, 3, 4)
    torch.testing.assert_close(
        made["softmax"].combining(), raw.exp() / (raw[0].exp() + raw[1].exp())
    )
    torch.testing.assert_close(made["unit"].combining(), raw / raw.square().sum(0).sqrt())
    rows, columns = raw.diff(dim=1), raw.diff(dim=2)
    if combine == "row":
        assert not columns.any()
        assert (rows != 0).all()
    if combine == "col":
        assert not rows.any()
        assert (columns != 0).all()
    if combine == "row+col":  # no interaction
        torch.testing.assert_close(columns.diff(dim=1), torch.zeros(2, 2, 3).double())
        assert (rows != 0).all()
        assert (columns != 0).all()
    if combine == "full":
        assert (columns.diff(dim=1) != 0).all()


def test_spatial_biases_have_the_form_of_the_table():
    x = torch.zeros(1, 1, 3, 4).double()
    for combine in TABLES:
        low_rank = layer(1, 2, 1, (3, 4), 2, combine=combine, bias=False)
        out = low_rank(x)[0]
        assert torch.equal(out[0], out[1])
        parts = dict(low_rank.spatial_biases.items())
        assert set(parts) == set(low_rank.tables) == set(combine.split("+"))
        for i, j in itertools.product(range(3), range(4)):
            want = sum(b[min(i, len(b) - 1), min(j, b.shape[1] - 1)] for b in parts.values())
            torch.testing.assert_close(out[0, i, j], want)
        without = layer(1, 2, 1, (3, 4), 2, combine=combine, bias=False, spatial_bias=False)
        assert not without(x).any()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("combine", TABLES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial_bias", [True, False])
def test_parameter_count(combine, bias, spatial_bias):
    low_rank = LowRankLocallyConnected2d(
        5, 6, (3, 2), (7, 4), 3, combine=combine, bias=bias, spatial_bias=spatial_bias
    )
    n = {"row+col": 7 + 4, "row": 7, "col": 4, "full": 7 * 4}[combine]
    want = 3 * 6 * 5 * 3 * 2 + 6 * bias + 3 * n + n * spatial_bias
    assert count(low_rank) == want


# --- from images ---------------------------------------------------------------------------------


def resized(maps, size):
    """Bilinear, corners on corners, one number at a time."""
    batch, channels, height, width = maps.shape
    out = torch.zeros(batch, channels, *size, dtype=maps.dtype)
    for i, j in itertools.product(*map(range, size)):
        y = i * (height - 1) / (size[0] - 1)
        x = j * (width - 1) / (size[1] - 1)
        for row, column in itertools.product(range(height), range(width)):
            share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            out[:, :, i, j] += share * maps[:, :, row, column]
    return out


def pointwise(conv, maps):
    """A 1x1 convolution."""
    mixed = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], maps)
    return mixed + conv.bias[:, None, None]


def test_combining_weights_from_images():
    low_rank = layer(2, 3, 3, (4, 5), 2, combine="input", normalisation="softmax")
    context, x = low_rank.context, noise(3, 2, 6, 7)
    low = pointwise(context.reduce, x)
    assert [scale.dilation for scale in context.scales] == [(1, 1), (2, 2)]  # 4 needs 9 pixels
    maps = [low, low.mean((2, 3))[:, :, None, None]]
    for scale in context.scales:
        reach = 2 * scale.dilation[0]
        found = torch.zeros(3, 2, 6 - reach, 7 - reach).double() + scale.bias[:, None, None]
        for u, v in itertools.product(range(3), range(3)):
            window = low[:, :, u * reach // 2 :, v * reach // 2 :][..., : 6 - reach, : 7 - reach]
            found = found + scale.weight[:, 0, u, v][:, None, None] * window
        maps.append(found)
    features = torch.cat([resized(part, (4, 5)) for part in maps], 1)
    squeezed = pointwise(context.squeeze, features).clamp_min(0)
    excited = 1 / (1 + pointwise(context.excite, squeezed).neg().exp())
    scores = pointwise(context.project, excited).exp()
    combining = scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(low_rank.combining(x), combining)
    assert (combining[0] - combining[1]).abs().max() > 1e-3

    each = [slowly.low_rank(x[i : i + 1], low_rank.weight, combining[i]) for i in range(3)]
    biases = low_rank.bias[:, None, None] + low_rank.spatial_biases["full"]
    torch.testing.assert_close(low_rank(x), torch.cat(each) + biases)


def test_dilations_that_fit_the_image():
    for pixels, dilations in ((2, []), (3, [1]), (8, [1, 2]), (9, [1, 2, 4]), (17, [1, 2, 4, 8])):
        for padding in (0, 1):
            size = pixels - 2 + 2 * padding
            if size < 1:
                continue
            options = {"combine": "input", "padding": padding}
            low_rank = LowRankLocallyConnected2d(1, 1, 3, size, 2, **options)
            assert [scale.dilation[0] for scale in low_rank.context.scales] == dilations
            assert low_rank(torch.zeros(1, 1, pixels, pixels)).shape == (1, 1, size, size)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [(), (1,), (2,)])
def test_gradients(tables):
    """First and second derivatives, with one table for all images or one each."""

    def function(x, weight, combining, bias, spatial_bias):
        return low_rank_conv2d(x, weight, combining, bias, spatial_bias, 1, 1)

    shapes = [(2, 2, 3, 3), (4, 2, 2, 3), (*tables, 2, 4, 3), (2,), (4, 3)]
    tensors = [noise(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("normalisation", NORMALISED)
def test_gradients_of_tables(normalisation):
    low_rank = layer(1, 2, 2, 3, 3, normalisation=normalisation)
    names, tensors = zip(*low_rank.named_parameters(), strict=True)
    x = noise(2, 1, 4, 4)

    def function(*tensors):
        return torch.func.functional_call(low_rank, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, tensors)


def test_only_the_gradients_that_are_wanted():
    low_rank, x = layer(2, 3, 3, 4, 2), noise(2, 2, 6, 6)
    low_rank(x).sum().backward()
    wanted = {name: parameter.grad for name, parameter in low_rank.named_parameters()}
    for name, gradient in wanted.items():
        other = copy.deepcopy(low_rank).requires_grad_(False)
        other.get_parameter(name).requires_grad_(True)
        other(x).sum().backward()
        torch.testing.assert_close(other.get_parameter(name).grad, gradient)


def test_transforms_of_functions():
    low_rank, x = layer(2, 3, 3, 4, 2), noise(3, 2, 6, 6)
    parameters = dict(low_rank.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(low_rank, parameters, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        found = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            torch.testing.assert_close(each[name][i], gradient)


def test_the_objective_goes_through_it():
    """Differentiated twice: the penalty and its gradient are those of the materialised layer."""
    low_rank = layer(2, 4, 3, 6, 2, spatial_bias=False)
    rest = [nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()]
    rest = draw_network(lambda: nn.Sequential(*copy.deepcopy(rest)), seeded()).double()
    local = LocallyConnected2d(2, 4, 3, 6, bias=False).double()
    low_rank.bias.data.zero_()
    kernels = low_rank.materialise()
    local.weight.data.copy_(kernels)
    images = noise(4, 2, 8, 8)
    one = PObjective(1.0, fraction=1.0)(nn.Sequential(low_rank, rest), images)
    two = PObjective(1.0, fraction=1.0)(nn.Sequential(local, rest), images)
    torch.testing.assert_close(one, two)
    tensors = [low_rank.weight, *low_rank.tables.values()]
    got = torch.autograd.grad(one, tensors)
    (of_kernels,) = torch.autograd.grad(two, [local.weight])
    want = torch.autograd.grad(kernels, tensors, of_kernels)
    torch.testing.assert_close(got, want)
    assert min(gradient.abs().max() for gradient in got) > 1e-4


@pytest.mark.parametrize("kind", ["low rank", "local"])
def test_autocast(kind):
    """Half precision comes out, as it does of a convolution; gradients are those of parameters."""
    local = slowly.randomised(LocallyConnected2d(8, 4, 3, 6), seeded())
    one = (layer(8, 4, 3, 6, 2) if kind == "low rank" else local).float()
    x = noise(2, 8, 8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = one(x)
    assert half.dtype == torch.bfloat16
    half.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in one.parameters())
    error = (half.float() - one(x)).abs().max()
    assert 0 < error < 0.05 * one(x).abs().max()


# --- what it costs -------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 8)
        return out


def test_kernels_of_positions_are_never_formed():
    batch, rank, width, size, channels = 2, 3, 4, 12, 16
    low_rank, x = layer(channels, width, 3, size, rank), noise(batch, channels, 14, 14)
    with Largest() as largest:
        low_rank(x.requires_grad_()).sum().backward()
    assert largest.numbers <= batch * size**2 * max(rank * width, 9 * channels)
    with Largest() as largest:
        low_rank.materialise()
    assert largest.numbers >= size**2 * width * channels * 9


def test_memory_for_backward_is_linear_in_the_rank():
    def saved(rank):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        low_rank = layer(2, 4, 3, 6, rank, normalisation="none", combine="full")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = low_rank(noise(2, 2, 8, 8).requires_grad_())
        del out
        return sum(kept.values())

    one, two, four = saved(1), saved(2), saved(4)
    assert four - two == 2 * (two - one) > 0


# --- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 1.5}, TypeError, "rank must be an int, got 1.5"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"out_channels": "4"}, TypeError, "out_channels must be an int, got '4'"),
        ({"kernel_size": (3, 0)}, ValueError, r"kernel_size must be at least 1, got \(3, 0\)"),
        ({"output_size": (3, 3, 3)}, TypeError, "output_size must be an int or a pair of ints"),
        ({"output_size": True}, TypeError, "output_size must be an int or a pair of ints"),
        ({"output_size": 6.0}, TypeError, "output_size must be an int or a pair of ints, got 6.0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "same"}, TypeError, "padding must be an int or a pair of ints, got 'same'"),
        ({"dilation": None}, TypeError, "dilation must be an int or a pair of ints, got None"),
        (
            {"combine": "rows"},
            ValueError,
            r"combine must be one of row\+col, row, col, full, input; got 'rows'",
        ),
        (
            {"normalisation": "l2"},
            ValueError,
            "normalisation must be one of softmax, unit, none; got 'l2'",
        ),
    ],
)
def test_settings_out_of_range(as_a_user, change, error, message):
    good = {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "output_size": 6, "rank": 2}
    with pytest.raises(error, match=message):
        LowRankLocallyConnected2d(**(good | change))


@pytest.mark.parametrize("combine", ["row+col", "input"])
def test_images_that_do_not_fit(as_a_user, combine):
    low_rank = LowRankLocallyConnected2d(2, 3, 3, 6, 2, combine=combine)
    message = r"output_size is \(6, 6\), but images of 9 x 8 pixels give \(7, 6\)"
    with pytest.raises(ValueError, match=message):
        low_rank(torch.zeros(1, 2, 9, 8))
    message = r"takes images \(batch, 2, height, width\), got shape \(1, 3, 8, 8\)"
    with pytest.raises(ValueError, match=message):
        low_rank(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(2, 8, 8\)"):
        low_rank(torch.zeros(2, 8, 8))


def test_no_kernels_without_an_image():
    low_rank = LowRankLocallyConnected2d(2, 3, 3, 6, 2, combine="input")
    with pytest.raises(ValueError, match='with combine="input" each image has its own combining'):
        low_rank.materialise()


def test_it_says_what_it_is():
    text = repr(LowRankLocallyConnected2d(2, 3, 3, 6, 2, combine="row"))
    assert "output_size=(6, 6)" in text
    assert "rank=2, combine='row', normalisation='softmax'" in text


def test_variance_of_the_functional_form_is_that_of_banks():
    """The documented reason for 1 / sqrt(rank): independent banks add their variances."""
    rank = 5
    weight, x = noise(rank * 2000, 1, 1, 1), torch.ones(1, 1, 1, 1).double()
    combining = torch.full((rank, 1, 1), 1 / math.sqrt(rank)).double()
    assert low_rank_conv2d(x, weight, combining).var().item() == pytest.approx(1, rel=0.1)
    kernels = noise(1, 1, 2000, 1, 1, 1)
    assert locally_connected2d(x, kernels).var().item() == pytest.approx(1, rel=0.1)
