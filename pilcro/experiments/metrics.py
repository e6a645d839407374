"""What a trained network is measured by, besides its landscape."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro import data
from pilcro.experiments.config import DataName
from pilcro.experiments.corruptions import SEVERITIES, corrupt
from pilcro.experiments.splits import CANVAS, Split, as_shown, load
from pilcro.neighbours import attribution_spread, neuron_coverage
from pilcro.shapes import Float, Images

NOISES = (0.05, 0.1, 0.2, 0.3)  # standard deviations, for pixels in [0, 1]
SEEN = 256  # validation images that landscapes and attributions are measured on
ROBUSTNESS = 1000  # test images that are corrupted
OBJECTS = 50  # of the test set, each at every place of a scene
BINS = 15
BATCH = 500

Logits = Float[Tensor, "images classes"]
Scores = Callable[[Images], Logits]


def scores_of(model: nn.Module, split: Split) -> Scores:
    """The network as a function from images in [0, 1] to scores on the CPU, in evaluation mode;
    its mode is put back after each call."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def scores(images: Images) -> Logits:
        was_training = model.training
        model.eval()
        try:
            parts = images.split(BATCH)
            return torch.cat([model(split.standardised(x.to(device))).float().cpu() for x in parts])
        finally:
            model.train(was_training)

    return scores


def accuracy(scores: Logits, labels: Tensor) -> float:
    """Share of the images whose highest score is that of the label.

    >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    0.75
    """
    return float((scores.argmax(1) == labels).double().mean())


def calibration_error(scores: Logits, labels: Tensor) -> float:
    """Mean difference of confidence and accuracy over bins of equal width (Guo et al., 2017),
    weighted by the number of images in them.

    >>> calibration_error(torch.tensor([[50.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    0.25
    """
    confidence, guess = scores.double().softmax(1).max(1)
    right = (guess == labels).double()
    place = (confidence * BINS).long().clamp_max(BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, confidence - right)
    return float(gap.abs().sum() / len(labels))


def breadth(model: nn.Module, split: Split) -> dict[str, float | None]:
    """How broadly a network looks at validation images: over which share of the pixels the evidence
    for the true class spreads (pixel times gradient), and which share of its neurons ever fires.
    None where no pixel says anything."""
    images, labels = (part[:SEEN].to(next(model.parameters()).device) for part in split.validation)
    images = split.standardised(images).requires_grad_()
    was_training = model.training
    model.eval()
    try:
        evidence = model(images).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(evidence, images)
        rectifiers = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        coverage = neuron_coverage(model, images.detach(), rectifiers)
    finally:
        model.train(was_training)
    spread = float(attribution_spread((gradient * images).detach().sum(1)).nanmean())
    return {
        "attribution_spread": round(spread, 5) if math.isfinite(spread) else None,
        "neuron_coverage": round(coverage, 5),
    }


def robustness(scores: Scores, dataset: DataName) -> dict[str, dict]:
    """Accuracy under Gaussian noise by its deviation, and under each corruption at five severities.

    The same corrupted images for every network: the first ``ROBUSTNESS`` of the test set. For
    CIFAR-10, also the authors' own CIFAR-10-C where its files are (:func:`pilcro.data.cifar10c`).
    """
    noisy = {}
    for sigma in NOISES:
        images, labels = with_noise(dataset, sigma)
        noisy[str(sigma)] = accuracy(scores(images), labels)
    found = {
        kind: [accuracy(scores(x), y) for x, y in corrupted(dataset, kind)] for kind in SEVERITIES
    }
    kinds = data.cifar10c_kinds() if dataset == "cifar10" else []
    more = {"cifar10c": {kind: authors(scores, kind) for kind in kinds}} if kinds else {}
    return {"noise": noisy, "corruption": found, **more}


def authors(scores: Scores, kind: str) -> list[float]:
    """Accuracy on the first images of CIFAR-10-C at severities 1 to 5."""
    parts = (data.cifar10c(kind, severity) for severity in range(1, 6))
    return [accuracy(scores(x[:ROBUSTNESS]), y[:ROBUSTNESS]) for x, y in parts]


def tested(dataset: DataName) -> tuple[Images, Tensor]:
    images, labels = (part[:ROBUSTNESS] for part in load(dataset, train=False))
    return as_shown(dataset, images, torch.Generator().manual_seed(0)), labels


@lru_cache(maxsize=len(NOISES))
def with_noise(dataset: DataName, sigma: float) -> tuple[Images, Tensor]:
    """Not clipped to [0, 1]: the noise is the same everywhere."""
    images, labels = tested(dataset)
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return images + sigma * drawn, labels


@lru_cache(maxsize=len(SEVERITIES))
def corrupted(dataset: DataName, kind: str) -> list[tuple[Images, Tensor]]:
    """At severities 1 to 5."""
    images, labels = tested(dataset)
    generator = torch.Generator().manual_seed(2)
    return [(corrupt(images, kind, level, generator=generator), labels) for level in range(1, 6)]


def by_place(scores: Scores) -> list[list[int]]:
    """How many of ``OBJECTS`` objects are recognised at each place on the canvas: row by row, a
    number for each place of the object's top left pixel."""
    labels = objects()[1]
    right = [scores(row).argmax(1).view(-1, OBJECTS) == labels for row in at_every_place()]
    return torch.stack(right).sum(2).tolist()


def objects() -> tuple[Images, Tensor]:
    images, labels = load("scenes_centred", train=False)
    return F.avg_pool2d(images[:OBJECTS], 2), labels[:OBJECTS]


@lru_cache(maxsize=1)
def at_every_place() -> list[Images]:
    """The same objects in front of the same clutter: a batch for each row of places."""
    images, _ = objects()
    grid = data.grid_of_places(images.shape[-1], CANVAS, CANVAS - images.shape[-1] + 1)

    def scene(place: Tensor) -> Images:
        places, generator = place.expand(OBJECTS, 2), torch.Generator().manual_seed(3)
        return data.scenes(images, places, canvas=CANVAS, generator=generator)

    return [torch.cat([scene(place) for place in row]) for row in grid]
