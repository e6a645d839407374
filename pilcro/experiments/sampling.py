"""How far a closed form is from sampled networks, and how far their noise lets it be.

Maps are compared after averaging over 4x4 pixels, which takes most of the noise and none of the
shape that the closed form is meant to predict.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro.landscape import Landscape, monte_carlo
from pilcro.shapes import Float, Map

NETWORKS = 2  # of one part; the parts tell how much noise there is


def sample(
    build_model: Callable[[], nn.Module],
    image_size: int,
    *,
    parts: int,
    inputs: int,
    seconds: float = float("inf"),
    generator: torch.Generator,
) -> list[Landscape]:
    """Independent Monte Carlo estimates from 2 networks each, on white noise.

    Draws ``parts`` of them, but when the time is up only as many as there are by then: at least 2.

    >>> random = torch.Generator().manual_seed(0)
    >>> len(sample(lambda: nn.Conv2d(3, 4, 3), 8, parts=3, inputs=1, generator=random))
    3
    """
    found: list[Landscape] = []
    end = time.monotonic() + seconds
    while len(found) < 2 or (len(found) < parts and time.monotonic() < end):
        found.append(
            monte_carlo(
                build_model,
                image_size,
                networks=NETWORKS,
                inputs=inputs,
                generator=generator,
            )
        )
    return found


def agreement(closed: Map, parts: list[Map]) -> dict[str, float | None]:
    """Numbers that compare a closed form with the mean of independent estimates of the same map.

    Returns:
        correlation: of the two maps, averaged over 4x4 pixels.
        ceiling: the correlation that the noise of the estimate leaves for the true map: the root
            of the mean's reliability, by Spearman and Brown's formula from the mean correlation
            between two parts. None when that is not positive.
        difference: root mean square over the pooled pixels, of maps over their means.
        standard_error: the same of the estimate's standard error.
        level: mean of the closed form over that of the estimate.

    >>> ramp = torch.arange(64.0).expand(64, 64).double()
    >>> found = agreement(2 * ramp, [ramp, ramp])
    >>> [round(found[name], 6) for name in ("correlation", "ceiling", "difference", "level")]
    [1.0, 1.0, 0.0, 2.0]
    """
    count = len(parts)
    level = float(torch.stack(parts).mean())
    mine = pooled(closed / closed.mean())
    theirs = torch.stack([pooled(part) for part in parts]) / level
    mean = theirs.mean(0)
    between = [correlation(theirs[i], theirs[j]) for i in range(count) for j in range(i)]
    agreed = sum(between) / len(between)
    return {
        "correlation": correlation(mine, mean),
        "ceiling": spearman_brown(agreed, count) ** 0.5 if agreed > 0 else None,
        "difference": float((mine - mean).square().mean().sqrt()),
        "standard_error": float((theirs.var(0) / count).mean().sqrt()),
        "level": float(closed.mean()) / level,
    }


def spearman_brown(single: float, count: int) -> float:
    """Reliability of the mean of ``count`` parts, from the correlation between two of them.

    >>> spearman_brown(0.5, 2)
    0.6666666666666666
    """
    return count * single / (1 + (count - 1) * single)


def pooled(importance: Map) -> Float[Tensor, "_ _"]:
    return F.avg_pool2d(importance[None, None], 4)[0, 0]


def correlation(one: Map, two: Map) -> float:
    """Of two maps, over pixels; 0 when one of them does not vary.

    >>> correlation(torch.eye(2), 1 - torch.eye(2))
    -1.0
    """
    one, two = one - one.mean(), two - two.mean()
    scale = float(one.norm() * two.norm())
    return float((one * two).sum()) / scale if scale else 0.0
