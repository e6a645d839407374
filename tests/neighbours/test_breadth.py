"""Attribution spread and neuron coverage against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import noise
from torch import nn

from pilcro import Landscape
from pilcro.neighbours import attribution_spread, neuron_coverage

# --- attribution spread --------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_spread_as_in_a_slow_loop(shape, seed):
    attributions = noise(*shape, seed=seed)
    for found, one in zip(attribution_spread(attributions), attributions, strict=True):
        entries = [abs(a) for a in one.flatten().tolist()]
        shares = [a / sum(entries) for a in entries]
        entropy = -sum(share * math.log(share) for share in shares)
        assert found == pytest.approx(math.exp(entropy) / len(entries), rel=1e-9)


@pytest.mark.parametrize("carriers", [1, 2, 3, 8])
def test_equal_carriers_are_counted(carriers):
    attributions = torch.zeros(1, 2, 2, 2)
    attributions.flatten()[:carriers] = -3
    assert attribution_spread(attributions).item() == pytest.approx(carriers / 8)


def test_spread_is_the_coverage_of_a_landscape():
    importance = noise(5, 6).square()
    want = Landscape(importance, exact=False, reasons=()).coverage
    assert attribution_spread(importance[None]).item() == pytest.approx(want)


def test_nothing_to_spread():
    assert attribution_spread(torch.zeros(1, 3)).isnan().all()


# --- neuron coverage -----------------------------------------------------------------------------


class Net(nn.Module):
    """The second ReLU runs twice; batch norm and a linear layer besides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.linear, self.again = nn.Linear(6, 5), nn.Linear(5, 5)
        self.first, self.second = nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        x = self.first(self.norm(self.conv(x))).mean((2, 3))
        return self.second(self.again(self.second(self.linear(x))))


@pytest.fixture
def net():
    net = Net().double().eval()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = noise(*parameter.shape, seed=i)
    return net


def slow_layers(net, images):
    """(name, output) of each call, without a hook."""
    x = net.norm(net.conv(images)).clamp_min(0)
    y = net.linear(x.mean((2, 3))).clamp_min(0)
    return [x, y, net.again(y).clamp_min(0)]


def slow_coverage(layers, threshold):
    fired = total = 0
    for layer in layers:
        for neuron in range(layer.shape[1]):
            total += 1
            for image in layer.tolist():
                flat = torch.tensor(image, dtype=torch.float64)
                low, high = flat.min(), flat.max()
                if high > low and ((flat[neuron] - low) / (high - low)).mean() > threshold:
                    fired += 1
                    break
    return fired / total


@pytest.mark.parametrize("images", [1, 3])
def test_coverage_as_in_a_slow_loop(net, images):
    images, relus = noise(images, 1, 6, 6, seed=9), [net.first, net.second]
    with torch.no_grad():
        layers = slow_layers(net, images)
    values = []
    for threshold in (0.0, 0.1, 0.25, 0.5, 0.9):
        found = neuron_coverage(net, images, relus, threshold)
        assert found == slow_coverage(layers, threshold)
        assert neuron_coverage(net, images, [net.first], threshold) == slow_coverage(
            layers[:1], threshold
        )
        values.append(found)
    assert 1 > values[0] > values[-1] > 0


def test_batches_are_taken_together():
    """Each image alone makes one of two channels fire."""
    relu = nn.ReLU()
    images = torch.tensor([[[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
    assert neuron_coverage(relu, images[:1], [relu]) == 0.5
    assert neuron_coverage(relu, images.split(1), [relu]) == 1
    assert neuron_coverage(relu, [(image, image) for image in images.split(1)], [relu]) == 1


def test_a_dead_layer_fires_nowhere():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, -1)
    assert neuron_coverage(net, torch.rand(2, 1, 4, 4), [net[1]], 0.0) == 0


def test_the_model_is_left_as_it_was(net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    neuron_coverage(net, noise(3, 1, 6, 6), [net.first])
    with pytest.raises(RuntimeError):
        neuron_coverage(net, noise(3, 2, 6, 6), [net.first])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not net.first._forward_hooks


def test_a_name_in_place_of_a_module(net, as_a_user):
    with pytest.raises(TypeError, match="modules must be modules of the model, got 'second'"):
        neuron_coverage(net, noise(3, 1, 6, 6), [net.first, "second"])
    assert not net.first._forward_hooks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1.0"),
        ({"threshold": -0.1}, r"threshold must lie in \[0, 1\), got -0.1"),
        ({"modules": [nn.ReLU()]}, "none of the modules runs in the forward pass"),
        ({"modules": []}, "none of the modules runs"),
        ({"images": []}, "images holds no batch"),
        ({"images": torch.ones(2, 3)}, r"images must be \(batch, channels, height, width\)"),
    ],
)
def test_wrong_arguments(change, message, net, as_a_user):
    arguments = {"images": noise(2, 1, 6, 6), "modules": [net.first], **change}
    with pytest.raises(ValueError, match=message):
        neuron_coverage(net, **arguments)
