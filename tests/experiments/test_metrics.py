import numpy as np
import pytest
import torch
from torch import nn

from pilcro.experiments import metrics
from pilcro.experiments.config import Run
from pilcro.experiments.corruptions import SEVERITIES, corrupt
from pilcro.experiments.splits import load, split


def test_accuracy_counts():
    scores = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    right = sum(
        max(range(5), key=row.__getitem__) == label
        for row, label in zip(scores, labels, strict=True)
    )
    assert metrics.accuracy(scores, labels) == right / 200


def test_calibration_error_bin_by_bin():
    scores = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(4, (500,), generator=torch.Generator().manual_seed(3))
    share = np.exp(scores.numpy().astype(float))
    share /= share.sum(1, keepdims=True)
    confidence, right = share.max(1), share.argmax(1) == labels.numpy()
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15 + (low == 14))
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            total += inside.sum() / 500 * gap
    assert metrics.calibration_error(scores, labels) == pytest.approx(total, rel=1e-9)


def test_a_calibrated_network_has_little_error():
    """Labels drawn from the predicted shares themselves; few images leave a bias of noise."""
    generator = torch.Generator().manual_seed(4)
    scores = 2 * torch.randn(100_000, 3, generator=generator)
    labels = scores.softmax(1).multinomial(1, generator=generator)[:, 0]
    assert metrics.calibration_error(scores, labels) < 0.01
    assert metrics.calibration_error(10 * scores, labels) > 0.1


class Brightness(nn.Module):
    """Class 1 where the image is brighter than usual; batch norm to have a mode that matters."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(1), nn.Linear(1, 2)
        self.linear.weight.data = torch.tensor([[0.0], [1.0]])
        self.linear.bias.data.zero_()

    def forward(self, x):
        return self.linear(self.norm(x).mean((2, 3)))


def test_scores_in_evaluation_mode_and_the_mode_is_put_back():
    found = split(Run(images=100))
    model = Brightness().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = found.validation[0]
    scores = metrics.scores_of(model, found)(images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = model.eval()(found.standardised(images)).detach()
    torch.testing.assert_close(scores, expected)


def test_breadth_of_a_network_that_reads_two_pixels():
    class TwoPixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.bias = nn.ReLU(), nn.Parameter(torch.zeros(10))

        def forward(self, x):
            seen = x[:, 0, 10, 10:12].square().sum(1, keepdim=True)
            return self.relu(torch.cat([seen, -seen], 1)).sum(1, keepdim=True) + self.bias

    found = split(Run(images=100))
    model = TwoPixels().train()
    result = metrics.breadth(model, found)
    assert model.training
    pixels = found.standardised(found.validation[0][: metrics.SEEN])[:, 0, 10, 10:12].double()
    share = pixels.square() / pixels.square().sum(1, keepdim=True)  # pixel times gradient
    expected = (-(share * share.log()).nansum(1)).exp().mean() / 32**2
    assert result["attribution_spread"] == pytest.approx(float(expected), abs=1e-5)
    assert result["neuron_coverage"] == 0.5


def test_breadth_of_a_network_that_has_died():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32**2, 10), nn.ReLU())
    for p in model.parameters():
        p.data.fill_(-1.0)
    model[1].weight.data.zero_()
    found = metrics.breadth(model, split(Run(images=100)))
    assert found["attribution_spread"] is None


def test_robustness_is_the_accuracy_on_corrupted_images():
    found = split(Run(images=100, evaluate_on="test"))
    scores = metrics.scores_of(Brightness(), found)
    result = metrics.robustness(scores, "fashion_mnist_subset")
    images, labels = found.test
    images, labels = images[: metrics.ROBUSTNESS], labels[: metrics.ROBUSTNESS]
    assert set(result["corruption"]) == set(SEVERITIES)
    generator = torch.Generator().manual_seed(2)
    for severity, value in enumerate(result["corruption"]["speckle_noise"], 1):
        changed = corrupt(images, "speckle_noise", severity, generator=generator)
        assert value == metrics.accuracy(scores(changed), labels)
    assert list(result["noise"]) == [str(sigma) for sigma in metrics.NOISES]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert result["noise"]["0.3"] == metrics.accuracy(scores(images + 0.3 * noise), labels)


def test_robustness_reads_the_authors_files_for_cifar10_alone(tmp_path, monkeypatch):
    """Two images, black and white, of which the detector knows the white one's class alone."""
    monkeypatch.setenv("PILCRO_DATA", str(tmp_path))
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = np.zeros((10, 32, 32, 3), np.uint8)
    images[1::2] = 255
    images[8:] = 0  # all is black at severity 5
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.array([3, 8] * 5, np.uint8))

    def scores(images):
        white = images.mean((1, 2, 3)) > 0.5
        return 1.0 * white[:, None] * torch.eye(10)[8]

    monkeypatch.setattr(
        metrics, "load", lambda dataset, train: (torch.zeros(2, 3, 32, 32), torch.tensor([3, 8]))
    )
    caches = (metrics.with_noise, metrics.corrupted)
    for cached in caches:
        cached.cache_clear()
    try:
        assert metrics.robustness(scores, "cifar10")["cifar10c"] == {"fog": [0.5] * 4 + [0.0]}
        assert "cifar10c" not in metrics.robustness(scores, "fashion_mnist")
    finally:
        for cached in caches:
            cached.cache_clear()


def test_objects_found_by_place():
    """A detector that answers right where its image is bright at one place alone."""
    labels = load("scenes_centred", train=False)[1][: metrics.OBJECTS]

    def scores(images):
        count = len(images) // metrics.OBJECTS
        guess = torch.full((len(images), 10), 0.0)
        guess[torch.arange(len(images)), labels.repeat(count)] = 1.0
        blind = images[:, 0, :14, :14].sum((1, 2)) < images[:, 0, 26:, 26:].sum((1, 2))
        guess[blind] = -guess[blind]
        return guess

    found = torch.tensor(metrics.by_place(scores))
    assert found.shape == (27, 27)
    assert found[0, 0] > 0.9 * metrics.OBJECTS
    assert found[26, 26] < 0.1 * metrics.OBJECTS
