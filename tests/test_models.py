"""The small networks take the images that they say they take, and use all of every image."""

import pytest
import torch
from torch import nn

from pilcro import closed_form, draw_network, models
from pilcro.models import (
    edge_filtered,
    plain_cnn,
    position_cnn,
    resnet18_small_images,
    small_cnn,
)
from pilcro.neighbours import CoordinateChannels, EdgeFilterConv2d


@pytest.mark.parametrize(
    ("classes", "channels", "image_size"), [(10, 1, 28), (7, 3, 32), (2, 2, 9), (2, 1, 1)]
)
def test_small_cnn(classes, channels, image_size):
    net = small_cnn(classes, channels, image_size)
    images = torch.zeros(5, channels, image_size, image_size)
    assert net(images).shape == (5, classes)
    landscape = closed_form(net, image_size, channels=channels)
    assert (landscape.importance > 0).all()  # no pixel is skipped


def test_small_cnn_is_not_flat():
    """Chapters flatten it, so there must be something to flatten: a grid."""
    assert closed_form(small_cnn(), 28, channels=1).periodicity[2] > 0.5


def test_networks_for_any_size():
    images = torch.zeros(2, 3, 32, 32)
    for net in (plain_cnn(channels=3), resnet18_small_images()):
        assert net(images).shape == (2, 10)
        found = closed_form(net, 32)
        assert (found.importance > 0).all()
        assert found.roughness > 0.1


def test_the_stem_for_small_images_skips_no_pixels():
    """A stride of one, and no pool: the first block sees the image's own size."""
    seen = []
    net = resnet18_small_images(4)
    net.layer1.register_forward_hook(lambda module, x, out: seen.append(out.shape[2:]))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert seen == [(32, 32)]


@pytest.mark.parametrize(("channels", "image_size"), [(1, 28), (3, 32), (3, 40)])
def test_edge_filters_take_the_place_of_the_first_layer_alone(channels, image_size):
    plain = small_cnn(7, channels, image_size)
    net = edge_filtered(plain)
    images = torch.zeros(5, channels, image_size, image_size)
    assert net(images).shape == (5, 7)
    assert isinstance(net[0][0], EdgeFilterConv2d)
    assert net[0](images).shape == plain[0](images).shape
    for mine, theirs in zip(net[1:].parameters(), plain[1:].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (closed_form(net, image_size, channels=channels).importance > 0).all()


def test_a_resnet50_with_edge_filters():
    from torchvision.models import resnet50

    net = edge_filtered(resnet50(num_classes=4))
    images = torch.zeros(1, 3, 32, 32)
    assert net.eval()(images).shape == (1, 4)
    assert net.conv1(images).shape == (1, 64, 16, 16)  # as with the 7x7 convolution
    assert not list(net.conv1[0].parameters())
    assert net.conv1[1].bias is None


def test_nothing_to_put_edge_filters_in_place_of():
    with pytest.raises(ValueError, match="model has no Conv2d"):
        edge_filtered(nn.Linear(2, 2))


# --- what a layer gains from knowing the position ------------------------------------------------

LAYERS = (0, 3, 6)  # where they stand in the network


def weights(network):
    """Shape of the kernels of each layer."""
    shift = isinstance(network[0], CoordinateChannels)
    return [tuple(network[i + shift].weight.shape) for i in LAYERS]


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize(("channels", "image_size"), [(1, 7), (3, 12)])
def test_position_cnn(kind, channels, image_size):
    net = position_cnn(kind, 5, channels, image_size, filters=6, rank=3).eval()
    assert net(torch.zeros(2, channels, image_size, image_size)).shape == (2, 5)
    landscape = closed_form(net, image_size, channels=channels)
    assert (landscape.importance > 0).all()
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.momentum, norm.eps) for norm in norms] == [(0.1, 1e-5)] * 3
    biased = [name for name, _ in net[:-1].named_parameters() if name.endswith("bias")]
    assert len(biased) == (6 if kind == "local" else 3)  # of the norms, and of local layers


def test_position_cnn_has_layers_of_its_kind():
    made = {kind: position_cnn(kind, 10, 3, 9, filters=6, rank=2) for kind in models.KINDS}
    assert weights(made["conv"]) == [(6, 3, 3, 3), (6, 6, 3, 3), (6, 6, 3, 3)]
    assert weights(made["coordinates"]) == [(6, 5, 3, 3), (6, 6, 3, 3), (6, 6, 3, 3)]
    assert weights(made["low_rank"]) == [(12, 3, 3, 3), (12, 6, 3, 3), (12, 6, 3, 3)]
    assert weights(made["wide"]) == [(8, 3, 3, 3), (9, 8, 3, 3), (12, 9, 3, 3)]
    sizes = [(7, 7), (5, 5), (3, 3)]
    want = [(*size, 6, before, 3, 3) for size, before in zip(sizes, (3, 6, 6), strict=True)]
    assert weights(made["local"]) == want


@pytest.mark.parametrize("layers", [(), (0,), (1,), (2,), (0, 2)])
def test_position_cnn_with_some_layers_of_its_kind(layers):
    """In place of one layer, wide convolutions have as many weights as low-rank layers."""
    plain = weights(position_cnn("conv", 10, 3, 9, filters=60))
    found = weights(position_cnn("low_rank", 10, 3, 9, filters=60, rank=2, layers=layers))
    for i in range(3):
        assert (found[i] == plain[i]) == (i not in layers)
    wide = weights(position_cnn("wide", 10, 3, 9, filters=60, rank=2, layers=layers))
    counts = [sum(torch.Size(shape).numel() for shape in shapes) for shapes in (found, wide)]
    if len(layers) < 2:
        assert counts[1] == pytest.approx(counts[0], rel=0.01)


def test_position_cnn_passes_the_combining_weights_on():
    net = position_cnn("low_rank", filters=2, image_size=9, combine="full", normalisation="unit")
    for layer in (net[i] for i in LAYERS):
        assert (layer.combine, layer.normalisation, layer.rank) == ("full", "unit", 2)


@pytest.mark.parametrize("kind", ["conv", "wide", "low_rank", "local"])
def test_position_cnn_starts_as_he_says(kind):
    net = draw_network(lambda: position_cnn(kind, channels=3, image_size=9, filters=32))
    for layer in (net[i] for i in LAYERS):
        fan_in = layer.in_channels * 9
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.1)
        assert layer.weight.abs().max() <= (6 / fan_in) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "lrlc"},
            "kind must be one of conv, low_rank, local, wide, coordinates; got 'lrlc'",
        ),
        ({"layers": (1, 3)}, r"layers must be among 0, 1 and 2, got \(1, 3\)"),
        ({"image_size": 6}, "image_size must be at least 7, got 6"),
    ],
)
def test_no_position_cnn(options, message):
    with pytest.raises(ValueError, match=message):
        position_cnn(**options)
