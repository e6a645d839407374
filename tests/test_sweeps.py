"""Laws that hold over many sizes: which sizes tilt a landscape, and how its level scales."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pilcro
from pilcro.cli import initial

aten = torch.ops.aten
AXES = (0, 1)

# --- strided layers, listed by PyTorch itself ----------------------------------------------------


class StridedLayers(TorchDispatchMode):
    """Writes down every strided convolution and pool that runs, functional ones too."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is aten.convolution.default:
            x, weight, _, stride, padding, dilation = args[:6]
            self.note(x, weight.shape[2:], stride, padding, dilation, out)
        elif function is aten.max_pool2d_with_indices.default:
            x, kernel, stride, padding = [*args, [0]][:4]
            self.note(x, kernel, stride, padding, [1], out[0])
        elif function is aten.avg_pool2d.default:
            x, kernel, stride, padding = [*args, [0]][:4]
            self.note(x, kernel, stride, padding, [1], out)
        return out

    def note(self, x, kernel, stride, padding, dilation, out):
        window = ([*value, *value][:2] for value in (kernel, stride or kernel, padding, dilation))
        layer = (x.shape[2:], *window, out.shape[2:])
        if max(layer[2]) > 1:
            self.found.append(layer)


def strided_layers(name, size):
    """(input, kernel, stride, padding, dilation, output), two numbers each, for every layer."""
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options).eval()
        with torch.no_grad(), StridedLayers() as layers:
            model(torch.empty(1, 3, *size))
    return layers.found


def uneven(layer, axis):
    """Some pixels, of the image or of its padding, are left over."""
    pixels, kernel, stride, padding, dilation, _ = (numbers[axis] for numbers in layer)
    return (pixels + 2 * padding - dilation * (kernel - 1) - 1) % stride != 0


def lopsided(layer, axis):
    """The windows, without what lies in the padding, are not their own mirror image."""
    pixels, kernel, stride, padding, dilation, outputs = (numbers[axis] for numbers in layer)
    starts = [i * stride - padding for i in range(outputs)]
    windows = [range(start, start + dilation * kernel, dilation) for start in starts]
    inside = [[x for x in window if 0 <= x < pixels] for window in windows]
    return inside != [[pixels - 1 - x for x in window[::-1]] for window in inside[::-1]]


# --- no uneven strided layer <=> mirror-symmetric map --------------------------------------------

SIZES = [(224, 225), (125, 109), (139, 107), (75, 77)]
FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "googlenet",  # pools with ceil_mode
    "inception_v3",
    "mobilenet_v2",
    "resnet18",
    "vgg11",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_uneven_strides_and_nothing_else_tilt(name):
    """Each family has its own sizes without a remainder: 225 for ResNet and MobileNetV2, 224 for
    VGG and ConvNeXt, 125 for DenseNet, 139 for Inception, 77 for GoogLeNet."""
    model, seen = initial(name), set()
    for size in SIZES:
        layers, tilt = strided_layers(name, size), pilcro.closed_form(model, size).tilt
        assert len(layers) >= 4
        for axis in AXES:
            left_over = any(uneven(layer, axis) for layer in layers)
            assert left_over == any(lopsided(layer, axis) for layer in layers)
            assert tilt[axis] > 0.01 if left_over else tilt[axis] < 1e-9, (size, axis)
            seen.add(left_over)
    assert seen == {True, False}


def test_a_remainder_that_only_cuts_padding_does_not_tilt():
    """17 pixels are 2 in front of the last stride of MobileNetV2: one window, on both of them."""
    layers = strided_layers("mobilenet_v2", (17, 17))
    assert [uneven(layer, 0) for layer in layers] == [False, False, False, False, True]
    assert not any(lopsided(layer, 0) for layer in layers)
    assert max(pilcro.closed_form(initial("mobilenet_v2"), 17).tilt) < 1e-9


@pytest.mark.parametrize("size", [6, 7])
def test_a_kernel_of_several_strides_does_not_tilt_under_full_padding(size):
    """Lopsided windows may still cover every pixel equally often: the only way there is."""
    layer = nn.Conv2d(1, 1, 4, 2, padding=3)
    geometry = (
        (size, size),
        *([n] * 2 for n in (4, 2, 3, 1)),
        layer(torch.ones(1, size, size)).shape[1:],
    )
    assert lopsided(geometry, 0) == uneven(geometry, 0) == (size == 7)
    importance = pilcro.closed_form(layer, size, channels=1).importance
    torch.testing.assert_close(importance / importance.mean(), torch.ones(size, size).double())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_chains_without_lopsided_layers_do_not_tilt(data):
    """Whatever their strides; and one lopsided layer alone tilts, if some pixel is read more often
    than its mirror image."""
    size, geometries, layers = data.draw(st.integers(9, 40)), [], []
    for _ in range(data.draw(st.integers(1, 3))):
        kernel, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
        padding, dilation = data.draw(st.integers(0, kernel)), data.draw(st.integers(1, 2))
        before = geometries[-1][-1][0] if geometries else size
        reach = before + 2 * padding - dilation * (kernel - 1) - 1
        assume(reach >= 0)
        layers.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation))
        numbers = (before, kernel, stride, padding, dilation, reach // stride + 1)
        geometries.append(tuple([n] * 2 for n in numbers))
    importance = pilcro.closed_form(nn.Sequential(*layers), size, channels=1).importance
    assume(importance.max() > 0)
    tilt = pilcro.Landscape(importance, exact=True).tilt[0]
    if not any(lopsided(geometry, 0) for geometry in geometries):
        assert tilt < 1e-9
    elif len(layers) == 1:
        n, kernel, stride, padding, dilation, outputs = (g[0] for g in geometries[0])
        reads = torch.zeros(n)
        for i, t in itertools.product(range(outputs), range(kernel)):
            place = i * stride - padding + t * dilation
            if 0 <= place < n:
                reads[place] += 1
        assert (tilt > 1e-9) == (not torch.equal(reads, reads.flip(0)))


# --- level ---------------------------------------------------------------------------------------


def gain_one(*layers):
    """All weights of a layer are fan_in^-1/2: a sum of squares goes through without loss, and each
    ReLU halves it. The level is exact, because each output reads fan_in inputs, none of them 0."""
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.constant_(layer.weight, layer.weight[0].numel() ** -0.5)
    return model.double()


@st.composite
def valid_or_circular(draw):
    """A chain that reads no zero from a padding; circular ones keep stride 1 here."""
    circular, depth = draw(st.booleans()), draw(st.integers(1, 4))
    layers, channels, size = [], draw(st.integers(1, 3)), draw(st.integers(12, 20))
    first, start = channels, size
    for _ in range(depth):
        groups = draw(st.sampled_from([1, channels]))
        out = groups * draw(st.integers(1, 2))
        kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        stride = 1 if circular else draw(st.integers(1, 2))
        reach = dilation * (kernel - 1)
        assume(kernel % 2 if circular else size > reach)
        options = {"padding": reach // 2, "padding_mode": "circular"} if circular else {}
        layers += [
            nn.Conv2d(channels, out, kernel, stride, dilation=dilation, groups=groups, **options),
            nn.ReLU(),
        ]
        channels, size = out, size if circular else (size - reach - 1) // stride + 1
        assume(channels <= 12)
    layers.append(nn.Flatten())
    if draw(st.booleans()):
        layers.append(nn.Linear(channels * size * size, 3))
    return gain_one(*layers), first, start, depth, circular


@settings(max_examples=60, deadline=None)
@given(valid_or_circular(), st.sampled_from(["expected", "drawn"]))
def test_gain_one_halves_the_level_at_every_relu(case, weights):
    model, channels, size, depth, circular = case
    found = pilcro.closed_form(model, size, channels=channels, weights=weights)
    assert found.exact
    torch.testing.assert_close(float(found.importance.sum()), 2.0**-depth)
    if circular:
        flat = torch.full((size, size), 2.0**-depth / size**2).double()
        torch.testing.assert_close(found.importance, flat)


def test_zero_padding_loses_level():
    """The law needs valid or circular padding."""
    model = gain_one(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten())
    want = (1 - 2 / (3 * 8)) ** 2 / 2  # of 3 kernel cells, one is lost at either end of 8
    found = pilcro.closed_form(model, 8, channels=2).importance.sum()
    torch.testing.assert_close(float(found), want)


@pytest.mark.parametrize("weights", ["expected", "drawn"])
@pytest.mark.parametrize("layer", [0, 3, 6])
def test_twice_the_weights_of_a_layer_are_four_times_the_importance(layer, weights, generator):
    """To the last digit: powers of two are not rounded."""

    def build():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, groups=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 16, 5),
        )

    model = pilcro.draw_network(build, generator)
    once = pilcro.closed_form(model, 8, channels=2, weights=weights).importance
    with torch.no_grad():
        model[layer].weight.mul_(2)
    twice = pilcro.closed_form(model, 8, channels=2, weights=weights).importance
    assert torch.equal(twice, 4 * once)
