"""How rough a landscape is: Laplacian, pyramid, curvature.

The three forms are our own definitions; the exact form used in arXiv 2001.09696 was not available
to us.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.checks import one_of
from pilcro.shapes import Float, Map

# Pixels that no path reaches have importance 0 and log -inf. The floor, relative to the mean
# importance, keeps their log finite and lies far below what a used pixel ever gets.
LOG_FLOOR = 1e-12

FORMS = ("log", "mean", "raw")


def laplacian(field: Map) -> Map:
    """Five-point Laplacian; outside the border the field repeats its edge.

    >>> bump = torch.zeros(3, 3)
    >>> bump[1, 1] = 1
    >>> laplacian(bump)[1].tolist()
    [1.0, -4.0, 1.0]
    """
    padded = F.pad(field[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    vertical = padded[:-2, 1:-1] + padded[2:, 1:-1]
    horizontal = padded[1:-1, :-2] + padded[1:-1, 2:]
    return vertical + horizontal - 4 * field


def pyramid(field: Map, levels: int = 3) -> list[Float[Tensor, "_ _"]]:
    """The field and its averages over 2x2, 4x4, ... pixels: ``levels`` maps, finest first.

    A remainder that fills no window is left out.

    Raises:
        ValueError: the coarsest level would be empty.

    >>> [tuple(level.shape) for level in pyramid(torch.ones(12, 8), levels=3)]
    [(12, 8), (6, 4), (3, 2)]
    """
    if not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels must be an int of at least 1, got {levels!r}")
    if min(field.shape) < 2 ** (levels - 1):
        raise ValueError(
            f"levels={levels} needs a map of at least {2 ** (levels - 1)} pixels a side, "
            f"got {tuple(field.shape)}"
        )
    maps = [field]
    for _ in range(levels - 1):
        maps.append(F.avg_pool2d(maps[-1][None, None], 2)[0, 0])
    return maps


class NoLandscapeError(ValueError):
    """The importance is zero at every pixel."""


def normalise(importance: Map) -> Map:
    """Importance over its mean: 1 everywhere when flat.

    Raises:
        NoLandscapeError: the importance is zero everywhere, so there is no shape to speak of.
    """
    mean = importance.mean()
    if not mean > 0:
        raise NoLandscapeError(
            "importance is zero at every pixel (or not a number): the output does not depend on "
            "the input, so the landscape has no shape"
        )
    return importance / mean


def log_landscape(importance: Map) -> Map:
    """log(importance / mean importance): 0 everywhere when flat, floored at log(1e-12)."""
    return normalise(importance).clamp_min(LOG_FLOOR).log()


def curvature(importance: Map, *, form: str = "log", levels: int = 3) -> Tensor:
    """Mean squared Laplacian of the landscape, summed over an average-pool pyramid.

    Args:
        importance: (height, width), non-negative.
        form: ``"log"`` looks at log(I / mean I) and ignores scale; ``"mean"`` at I / mean I;
            ``"raw"`` at height * width * I, so it also grows with the size of the gradient.
        levels: maps in the pyramid (1 is the plain Laplacian, blind to a slow fall-off).

    Returns:
        A 0-dim tensor, differentiable with respect to ``importance``; 0 when flat.

    Raises:
        TypeError, ValueError: not a map, an unknown form, or a map too small for ``levels``.

    Source: our definition.

    >>> ramp = torch.arange(1.0, 9.0).expand(8, 8)
    >>> curvature(torch.ones(8, 8)).item(), bool(curvature(ramp) > 0)
    (0.0, True)
    """
    if not isinstance(importance, Tensor) or not importance.is_floating_point():
        what = getattr(importance, "dtype", type(importance).__name__)
        raise TypeError(f"importance must be a floating-point tensor, got {what}")
    if importance.ndim != 2 or importance.numel() == 0:
        raise ValueError(
            f"importance must be a non-empty (height, width) map, got {tuple(importance.shape)}"
        )
    one_of("form", form, FORMS)
    if form == "log":
        field = log_landscape(importance)
    elif form == "mean":
        field = normalise(importance)
    else:
        field = importance * importance.numel()
    return torch.stack([laplacian(level).square().mean() for level in pyramid(field, levels)]).sum()
