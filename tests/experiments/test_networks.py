import pytest
import torch
from torch import nn

import pilcro
from pilcro.experiments.networks import NETWORKS, build


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_for_each_class(network, channels):
    model = build(network, False, channels, 32, 7)
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("network", "size"),
    [*((name, 32) for name in NETWORKS), ("small_cnn", 40), ("small_resnet", 40)],
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
