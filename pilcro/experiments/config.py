"""One training run: all that decides its numbers."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Literal

import torch

DataName = Literal[
    "cifar10", "fashion_mnist", "fashion_mnist_subset", "scenes_centred", "scenes_anywhere"
]
NetworkName = Literal["small_cnn", "small_resnet", "position_cnn", "resnet18", "vgg11"]
ChangeName = Literal[
    "none", "rank 1", "rank 2", "rank 4", "local", "wide 2", "wide 4", "coordinates", "edge filters"
]
MethodName = Literal["plain", "objective", "jacobian", "total_variation", "shift", "loco"]
# Fields that came after results had been stored: at these values they leave keys as they were.
LATER = {"change": "none", "drop": 0.0, "dropped": "salient", "growth": 1.0}


@dataclass(frozen=True)
class Method:
    """What is added to plain training.

    ``objective`` is :class:`pilcro.PObjective`; ``jacobian`` and ``total_variation`` penalise the
    squared norm and the total variation of the gradient of a random projection of the outputs with
    respect to the images, on the same part of the batch; ``shift`` moves the images at random;
    ``loco`` is :func:`pilcro.neighbours.loco_penalty`.
    """

    name: MethodName = "plain"  # what is added
    strength: float = 0.0  # the penalty's weight; of shift, the largest move in pixels
    form: Literal["log", "mean", "raw"] = "log"  # of objective
    estimator: Literal["backprop", "twin"] = "backprop"  # of objective
    fraction: float = 0.25  # of the batch, for a penalty
    every: int = 1  # of objective: penalise each every-th step
    growth: float = 1.0  # of loco: decay grows as this power of the distance from the centre

    def __post_init__(self) -> None:
        if self.name == "plain" and self.strength:
            raise ValueError(f"plain training has no strength, got {self.strength}")
        if self.name != "plain" and not 0 < self.strength < math.inf:
            raise ValueError(f"{self.name} needs a strength above 0, got {self.strength}")
        if self.name == "shift" and self.strength != int(self.strength):
            raise ValueError(f"shift needs a whole number of pixels, got {self.strength}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")


@dataclass(frozen=True)
class Run:
    """One training run. Two runs with equal fields give equal numbers on one type of machine."""

    dataset: DataName = "fashion_mnist_subset"  # scenes show Fashion-MNIST objects in clutter
    images: int = 1000  # to train on, the same number of each class
    network: NetworkName = "small_cnn"  # of pilcro.models, but for vgg11
    flat: bool = False  # change the network so that it starts with a flat landscape (chapter 6)
    method: Method = field(default_factory=Method)
    seed: int = 0  # of the choice of images, their order, the first weights, all that is random
    evaluate_on: Literal["validation", "test"] = "validation"  # test is looked at once
    epochs: int = 20  # passes over the images
    batch: int = 64  # of all processes together
    optimiser: Literal["sgd", "adamw"] = "sgd"  # sgd with Nesterov momentum 0.9
    learning_rate: float = 0.1  # the highest: up for a fifth of the steps, then a cosine down
    weight_decay: float = 0.0  # as PyTorch's optimisers take it
    device: str = "cpu"  # or cuda; each process of torchrun takes a card of its own
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16 by autocast
    threads: int = 1  # of the CPU; sums come out differently with another number
    change: ChangeName = "none"  # of the network's convolutions (chapters 15 and 18)
    drop: float = 0.0  # share of the last feature map to drop in training (chapter 17)
    dropped: Literal["salient", "random"] = "salient"  # what: SGDrop, or dropout for comparison

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch > self.images:
            raise ValueError(f"batch is {self.batch}, but there are {self.images} images")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must lie in [0, 1), got {self.drop}")
        if self.flat and self.change != "none":
            raise ValueError(f"a network cannot be made flat and changed to {self.change!r}, too")
        if self.flat and self.network == "position_cnn":
            raise ValueError("position_cnn cannot be made flat: it has no padding and no stride")

    def as_dict(self) -> dict:
        """Nested, as it is stored."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, config: dict) -> "Run":
        """The run of a stored record.

        >>> Run.from_dict(Run(seed=4).as_dict()) == Run(seed=4)
        True
        """
        return cls(**config | {"method": Method(**config["method"])})

    @property
    def key(self) -> str:
        """Short name of all the fields together.

        >>> Run(seed=1).key == Run(seed=1).key != Run(seed=2).key
        True
        """
        fields = self.as_dict()
        text = json.dumps(
            as_before(fields | {"method": as_before(fields["method"])}), sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def generator(self, purpose: str) -> torch.Generator:
        """The random numbers of this run for one purpose: they depend on the seed and the purpose
        alone, so that runs with one seed share images, order and first weights whatever the method.

        >>> one, two = (Run(seed=3, epochs=n).generator("order") for n in (1, 2))
        >>> torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=two))
        True
        """
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def as_before(fields: dict) -> dict:
    """Without what came later, where it changes nothing."""
    return {name: x for name, x in fields.items() if name not in LATER or x != LATER[name]}
