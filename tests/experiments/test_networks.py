from typing import get_args

import pytest
import torch
from torch import nn

import pilcro
from pilcro.experiments.config import ChangeName
from pilcro.experiments.networks import NETWORKS, build, put_behind_features, relaxed
from pilcro.neighbours import LowRankLocallyConnected2d


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_for_each_class(network, channels):
    model = build(network, False, channels, 32, 7)
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        *((name, 32) for name in NETWORKS if name != "position_cnn"),  # which does not pad
        ("small_cnn", 40),
        ("small_resnet", 40),
    ],
)
def test_flat_by_design(network, size):
    before, after = (
        pilcro.closed_form(build(network, flat, 3, size, 10), size) for flat in (False, True)
    )
    assert before.roughness > 0.1
    assert (after.normalised - 1).abs().max() < 1e-5


def test_flat_pooling_windows_do_not_overlap():
    from pilcro.experiments.networks import flattened

    model = flattened(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1)))
    assert (pilcro.closed_form(model, 16).normalised - 1).abs().max() < 1e-5


def test_layers_that_stay_keep_their_weights():
    from pilcro.experiments.networks import flattened

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    changed = flattened(model)
    torch.testing.assert_close(changed[0].weight, model[0].weight)
    assert changed[2] is not model[2]
    assert model[2].padding_mode == "zeros"


CHANGES = [
    *((net, change) for net in ("small_cnn", "small_resnet") for change in ("rank 2", "local")),
    *((net, "edge filters") for net in NETWORKS),
    *(("position_cnn", change) for change in get_args(ChangeName)),
]


@pytest.mark.parametrize(("network", "change"), CHANGES)
def test_changed_networks_take_the_same_images(network, change):
    for channels in (1, 3):
        model = build(network, False, channels, 32, 7, change=change)
        assert model(torch.randn(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("network", ["small_cnn", "small_resnet"])
def test_every_spatial_convolution_is_relaxed(network):
    before = build(network, False, 3, 32, 10)
    after = build(network, False, 3, 32, 10, change="rank 4")
    for name, layer in before.named_modules():
        if isinstance(layer, nn.Conv2d):
            new = after.get_submodule(name)
            assert isinstance(new, LowRankLocallyConnected2d) == (layer.kernel_size == (3, 3))
            assert getattr(new, "rank", 4) == 4
            assert (new.stride, new.padding) == (layer.stride, layer.padding)
            assert (new.bias is None) == (layer.bias is None)


def test_relaxing_leaves_running_statistics_alone():
    model = build("small_resnet", False, 3, 32, 10)
    changed = relaxed(model, 2, 3, 32)
    assert int(changed[1].num_batches_tracked) == 0
    assert isinstance(model[0], nn.Conv2d)


def test_a_change_that_a_network_does_not_know():
    with pytest.raises(ValueError, match="small_cnn cannot be changed to 'wide 2'"):
        build("small_cnn", False, 3, 32, 10, change="wide 2")


@pytest.mark.parametrize("network", NETWORKS)
def test_behind_the_last_feature_map(network):
    model = build(network, False, 3, 32, 10).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    seen = []
    module = nn.Identity()
    module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    put_behind_features(model, module)
    torch.testing.assert_close(model(x), before)
    ((count, channels, height, width),) = seen
    assert count == 2
    assert channels >= 16
    assert channels * height * width > 10
