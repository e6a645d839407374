"""LOCO-Reg: weight decay that grows with the distance from the centre of a kernel.

A kernel is *spatial* if it has more than one cell. A 1x1 kernel has no distance to decay by: leave
it to plain weight decay, with the linear layers. Depthwise, grouped and transposed kernels are
taken cell by cell like all others, and parametrised ones (weight norm, say) as the convolution
sees them.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pilcro.landscape import unwrapped
from pilcro.second_moments import at_least_single
from pilcro.shapes import Float
from pilcro.untouched import with_untouched

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
LAWS = ("power", "exponential")


def loco_penalty(
    model: nn.Module, weight: float, growth: float = 1.0, *, law: str = "power"
) -> Float[Tensor, ""]:
    """The coupled form, part of the loss: ``weight`` times the sum of d w^2 over all spatial
    kernels.

    The factor d of a cell depends on its distance r from the centre of the kernel (between two
    cells where the size is even), in cells: r^growth by the ``power`` law, which leaves the centre
    of an odd kernel alone, or e^(growth r) by the ``exponential`` one. In each kernel d is divided
    by its mean, so that all laws decay equally strongly on average, and growth 0 is plain L2.

    Args:
        model: any; buffers stay as they are.
        weight: not negative; at growth 0, half of what optimizers call ``weight_decay``.
        growth: not negative.
        law: ``"power"`` or ``"exponential"``.

    Returns:
        0-dim, in single precision at least, differentiable.

    Raises:
        TypeError, ValueError: a setting out of range, no module, no spatial kernel.

    Source: Schneider (arXiv 1905.10661) has the idea. Its factors were not available to us: laws
    and normalisation are ours. Chapter 16 derives it.

    >>> conv = nn.Conv2d(1, 1, 3)
    >>> torch.allclose(loco_penalty(conv, 0.5, 0.0), 0.5 * conv.weight.square().sum())
    True
    """
    for name, value in (("weight", weight), ("growth", growth)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}; got {law!r}")

    kernels = spatial_kernels(unwrapped(model)).values()
    sizes = {kernel.shape[2:] for kernel in kernels}
    factors = {size: distance_factors(size, growth, law) for size in sizes}

    def decayed(kernel: Tensor) -> Tensor:
        squares = kernel.to(at_least_single(kernel.dtype)).square().sum((0, 1))
        return (factors[squares.shape].to(squares) * squares).sum()

    return weight * sum(decayed(kernel) for kernel in kernels)


def loco_decay(
    model: nn.Module,
    weight: float,
    learning_rate: float,
    growth: float = 1.0,
    *,
    law: str = "power",
) -> None:
    """The decoupled form, to be called after each ``optimizer.step()``: one step of plain gradient
    descent on :func:`loco_penalty`, which no momentum and no second moment of Adam sees.

    A weight w becomes (1 - 2 learning_rate weight d) w, as in AdamW; a parametrised kernel moves
    by the gradient of its own parameters. What does not require gradients stays.

    Args:
        model, weight, growth, law: as for :func:`loco_penalty`.
        learning_rate: the optimizer's at this step.

    Raises:
        TypeError, ValueError: as :func:`loco_penalty`.

    Source: Loshchilov and Hutter (arXiv 1711.05101) for decoupling; chapter 16 uses both forms.

    >>> conv = nn.Conv2d(1, 1, 3)
    >>> before = conv.weight.detach().clone()
    >>> loco_decay(conv, 0.5, learning_rate=0.1)
    >>> torch.equal(conv.weight[..., 1, 1], before[..., 1, 1]), torch.equal(conv.weight, before)
    (True, False)
    """
    with torch.enable_grad():
        penalty = loco_penalty(model, weight, growth, law=law)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not penalty.requires_grad:
        return
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= learning_rate * gradient


class CentreEdge(NamedTuple):
    """Of one layer: its path in the model, its kernel size, mean square of its central weights
    over that of its border."""

    name: str
    kernel_size: tuple[int, ...]
    ratio: float


def centre_edge_ratio(model: nn.Module) -> list[CentreEdge]:
    """How much larger the weights in the centre of each kernel are than those at its border.

    Central cells are those nearest to the centre (one of a 3x3 kernel, four of a 4x4), border
    cells the first and the last along any axis. Kernels without a cell inside their border (1x1,
    2x2) are left out. Independent weights with one variance, as at initialisation, have a ratio
    around 1.

    Returns:
        One entry for each layer that is left, in the order of ``model.named_modules()``; its ratio
        is infinite where the border is all zero.

    Raises:
        TypeError, ValueError: no module; no kernel that has an inside.

    Source: Schneider (arXiv 1905.10661) reports the observation; this measure is ours, chapter 16.

    >>> conv = nn.Conv2d(1, 1, 3)
    >>> _ = nn.init.constant_(conv.weight, 0.5)
    >>> centre_edge_ratio(nn.Sequential(conv))
    [CentreEdge(name='0', kernel_size=(3, 3), ratio=1.0)]
    """

    found = []
    for name, kernel in spatial_kernels(unwrapped(model)).items():
        squares = kernel.detach().double().square().mean((0, 1)).cpu()
        edge = border(squares.shape)
        if not edge.all():
            r = distances(squares.shape)
            ratio = float(squares[r == r.min()].mean() / squares[edge].mean())
            found.append(CentreEdge(name, tuple(squares.shape), ratio))
    if not found:
        raise ValueError("model has no kernel with a cell inside its border, such as a 3x3 one")
    return found


def spatial_kernels(model: nn.Module) -> dict[str, Tensor]:
    """The kernels (., ., *size) of more than one cell by the path of their layer; what several
    layers share is there once."""
    kernels: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS) and math.prod(module.kernel_size) > 1:
            kernel = module.weight if not is_parametrized(module) else computed_weight(module)
            if all(kernel is not other for other in kernels.values()):
                kernels[name] = kernel
    if not kernels:
        raise ValueError("model has no spatial kernel: no convolution with more than one cell")
    return kernels


def computed_weight(module: nn.Module) -> Tensor:
    """Of a parametrised layer: spectral norm moves its buffers whenever it is asked."""
    return with_untouched(module, lambda module: module.weight, detached=False)


def distances(size: Sequence[int]) -> Tensor:
    """Of each cell from the centre of the kernel.

    >>> distances((1, 4))
    tensor([[1.5000, 0.5000, 0.5000, 1.5000]], dtype=torch.float64)
    """
    axes = [torch.arange(cells, dtype=torch.float64) - (cells - 1) / 2 for cells in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()


def distance_factors(size: Sequence[int], growth: float, law: str) -> Tensor:
    """d, with mean 1 over the cells.

    >>> distance_factors((1, 3), 2.0, "power")
    tensor([[1.5000, 0.0000, 1.5000]], dtype=torch.float64)
    """
    r = distances(size)
    # Relative to the largest, which the mean takes out again: nothing overflows.
    d = (r / r.max()) ** growth if law == "power" else (growth * (r - r.max())).exp()
    return d / d.mean()


def border(size: Sequence[int]) -> Tensor:
    """True for the first and the last cell along an axis; an axis of size 1 has no ends.

    >>> border((1, 4)).tolist()
    [[True, False, False, True]]
    """
    edge = torch.zeros(tuple(size), dtype=torch.bool)
    for axis, cells in enumerate(size):
        if cells > 1:
            edge.index_fill_(axis, torch.tensor([0, cells - 1]), True)
    return edge
