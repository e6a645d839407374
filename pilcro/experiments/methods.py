"""What a method adds to a training step: a penalty, or other images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro.data.scenes import window
from pilcro.experiments.config import Method, Run
from pilcro.landscape import unwrapped
from pilcro.neighbours import SGDrop, loco_penalty
from pilcro.objective import PObjective, backprop, process_group, squared
from pilcro.shapes import Float, Images

Penalty = Callable[[nn.Module, Images], Float[Tensor, ""]]


def total_variation(gradients: Images) -> Float[Tensor, ""]:
    """Of each channel of each image: the absolute differences of neighbours, summed.

    >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))
    tensor(6.)
    """
    return gradients.diff(dim=2).abs().sum() + gradients.diff(dim=3).abs().sum()


def squared_norm(gradients: Images) -> Float[Tensor, ""]:
    """The sum of all importance: of random projections, the squared norm of the Jacobian over the
    number of outputs (Hoffman et al., 2019)."""
    return squared(gradients).sum()


class GradientPenalty:
    """``strength`` times a measure of the outputs' gradient, averaged over a part of the batch."""

    def __init__(
        self,
        strength: float,
        measure: Callable[[Images], Tensor],
        fraction: float,
        generator: torch.Generator,
    ) -> None:
        self.strength, self.measure, self.fraction = strength, measure, fraction
        self.generator = generator

    def __call__(self, model: nn.Module, images: Images) -> Float[Tensor, ""]:
        group = process_group(model)
        generator, fraction = self.generator, self.fraction
        found = backprop(unwrapped(model), images, fraction, 1, generator, group, self.measure)
        return self.strength * found

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def penalty(method: Method, generator: torch.Generator) -> Penalty | None:
    """What is added to the loss of each step, as a function of model and images; None adds nothing.

    >>> penalty(Method(), torch.Generator()) is None
    True
    """
    if method.name == "objective":
        return PObjective(
            method.strength,
            form=method.form,
            estimator=method.estimator,
            fraction=method.fraction,
            every=method.every,
            generator=generator,
        )
    measures = {"jacobian": squared_norm, "total_variation": total_variation}
    if method.name in measures:
        measure = measures[method.name]
        return GradientPenalty(method.strength, measure, method.fraction, generator)
    if method.name == "loco":
        return lambda model, images: loco_penalty(model, method.strength, method.growth)
    return None


def dropping(run: Run, generator: torch.Generator) -> SGDrop | None:
    """What is put behind the last feature map: SGDrop, or the same with attributions at random,
    which is dropout of a fixed share.

    >>> dropping(Run(drop=0.1), torch.Generator())
    SGDrop(quantile=0.9, ema=None, rescale='share')
    """
    if not run.drop:
        return None
    if run.dropped == "salient":
        return SGDrop(1 - run.drop)

    def at_random(features: Tensor, gradient: Tensor) -> Tensor:
        return torch.rand(features.shape, generator=generator).to(features)

    return SGDrop(1 - run.drop, attribution=at_random)


def augmented(method: Method, images: Images, generator: torch.Generator) -> Images:
    """The images of a step: each moved at random if the method is ``shift``, else as they are.

    Args:
        method: its strength is the largest move, in pixels, along each axis.
        images: (batch, channels, height, width); zeros come in from outside.
        generator: on the CPU.

    >>> images = torch.rand(2, 1, 8, 8)
    >>> augmented(Method("shift", 2.0), images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    if method.name != "shift":
        return images
    reach = int(method.strength)
    batch, channels, height, width = images.shape
    corners = torch.randint(2 * reach + 1, (2, batch), generator=generator).T.to(images.device)
    each = torch.arange(batch, device=images.device)
    return F.pad(images, [reach] * 4)[window(each, corners, channels, height, width)]
