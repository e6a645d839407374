"""Run a model on second moments, and go back once."""

import math

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pilcro import covariances as pairs
from pilcro.second_moments import Run, SecondMoment, at_least_single, white_noise
from pilcro.untouched import carrying_gradient, one_tensor, placement


def propagate(
    model: nn.Module,
    image_size: tuple[int, int],
    channels: int,
    *,
    expected: bool,
    unit: tuple[int, int] | None = None,
    differentiable: bool = False,
    covariances: bool = False,
) -> tuple[Tensor, tuple[str, ...]]:
    """Run ``model`` on the second moments of white noise, and go back once, from one output
    position if ``unit`` names it. If ``differentiable``, the weights get gradients as well; with
    ``covariances``, pairs of positions are followed, which takes expected weights.

    Returns:
        importance: (height, width), and the reasons why rules were approximate, if they were.
    """
    device, dtype = placement(model)
    image = torch.ones(
        1,
        1 if expected else channels,
        *image_size,
        dtype=torch.float64 if expected else at_least_single(dtype),
        device=device,
        requires_grad=True,
    )
    run = Run(model, expected, differentiable)
    if covariances:
        noise = pairs.white_noise(image[0, 0], channels, run)
    else:
        noise = white_noise(image, (1, channels, *image_size), run)
    with MasksAtTheirSecondMoment():
        output = model(noise)
    if isinstance(output, pairs.Covariance):
        output = output.diagonal_only()
    if not isinstance(one_tensor(output), SecondMoment):
        raise ValueError("the model's output does not depend on the image")
    moments = output.moments if unit is None else at_unit(output, unit)
    mean = carrying_gradient(moments).mean()
    (gradient,) = torch.autograd.grad(
        mean, image, create_graph=differentiable, materialize_grads=True
    )
    return gradient[0].sum(0), tuple(dict.fromkeys(run.reasons))


class MasksAtTheirSecondMoment(TorchFunctionMode):
    """Random masks that a forward draws for itself, as stochastic depth does: zeros and ones with
    probability p of a one have second moment p, so its root stands in for them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.bernoulli_:
            mask, p = args[0], args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5)
            return mask.fill_(math.sqrt(p))
        return function(*args, **(kwargs or {}))


def at_unit(output: SecondMoment, unit: tuple[int, int]) -> Tensor:
    """Second moments of all channels at one position of the output."""
    if output.ndim != 4:
        raise ValueError(
            "unit needs a model that returns (batch, channels, height, width), got shape "
            f"{tuple(output.shape)}"
        )
    rows, columns = output.shape[2:]
    if not (0 <= unit[0] < rows and 0 <= unit[1] < columns):
        raise ValueError(f"unit must lie within the ({rows}, {columns}) output, got {unit}")
    return output.full()[..., unit[0], unit[1]]
