"""Images to train on, to validate on and, for a run that tests, to test on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro import data
from pilcro.experiments.config import DataName, Run
from pilcro.shapes import Float, Images

CLASSES = 10
VALIDATION = 1000  # images: the last ones of each class, never trained on
CANVAS = 40  # pixels, of a scene

Part = tuple[Float[Tensor, "_ channels height width"], Tensor]


@dataclass(frozen=True)
class Split:
    """Images in [0, 1] and labels. A run that tunes has no test images in its hands."""

    train: Part
    validation: Part
    test: Part | None
    mean: Float[Tensor, "channels 1 1"]
    deviation: Float[Tensor, "channels 1 1"]

    def standardised(self, images: Images) -> Images:
        """With the mean and the deviation of each channel over the images to train on."""
        return (images - self.mean.to(images)) / self.deviation.to(images)


def split(run: Run) -> Split:
    """The data of a run. The seed decides which images of the data set it trains on.

    Raises:
        ValueError: the data set has too few images.
        FetchError: it has not been fetched.

    >>> found = split(Run(images=100))
    >>> found.train[0].shape, found.train[1].bincount().tolist() == 10 * [10]
    (torch.Size([100, 1, 32, 32]), True)
    """
    images, labels = load(run.dataset, train=True)
    classes = [(labels == label).nonzero()[:, 0] for label in range(CLASSES)]
    each, most = VALIDATION // CLASSES, min(map(len, classes)) - VALIDATION // CLASSES
    wanted, remainder = divmod(run.images, CLASSES)
    if remainder or wanted > most:
        raise ValueError(
            f"images must be a multiple of {CLASSES} and at most {CLASSES * most} for "
            f"{run.dataset}, got {run.images}"
        )
    generator = run.generator("images")
    order = [torch.randperm(len(rows) - each, generator=generator)[:wanted] for rows in classes]
    chosen = torch.cat([rows[places] for rows, places in zip(classes, order, strict=True)])
    # One of each class in turn, so that any beginning is balanced.
    held = torch.stack([rows[len(rows) - each :] for rows in classes], 1).flatten()
    train = as_shown(run.dataset, images[chosen], run.generator("scenes")), labels[chosen]
    fixed = torch.Generator().manual_seed(0)
    validation = as_shown(run.dataset, images[held], fixed), labels[held]
    test = None
    if run.evaluate_on == "test":
        images, labels = load(run.dataset, train=False)
        test = as_shown(run.dataset, images, fixed), labels
    over = (0, 2, 3)
    mean, deviation = (f(over, keepdim=True)[0] for f in (train[0].mean, train[0].std))
    return Split(train, validation, test, mean, deviation)


@lru_cache(maxsize=2)
def load(dataset: DataName, train: bool) -> Part:
    """The images of a data set; for scenes, the objects in them."""
    loaders: dict[DataName, Callable[[bool], Part]] = {
        "cifar10": data.cifar10,
        "fashion_mnist": data.fashion_mnist,
    }
    return loaders.get(dataset, data.fashion_mnist_subset)(train)


def as_shown(
    dataset: DataName, images: Images, generator: torch.Generator
) -> Float[Tensor, "batch channels _ _"]:
    """What a network gets to see: CIFAR-10 as it is, Fashion-MNIST with a black border of two
    pixels, which makes it as large, and scenes with the object at half its size."""
    if dataset == "cifar10":
        return images
    if dataset in ("fashion_mnist", "fashion_mnist_subset"):
        return F.pad(images, [2, 2, 2, 2])
    objects = F.avg_pool2d(images, 2)
    count, side = len(objects), objects.shape[-1]
    if dataset == "scenes_centred":
        places = data.centred(count, side, CANVAS)
    else:
        places = data.anywhere(count, side, CANVAS, generator)
    return data.scenes(objects, places, canvas=CANVAS, generator=generator)
