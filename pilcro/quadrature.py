"""What an activation f does to second moments, for z ~ N(0, q): E[f(z)^2], E[f'(z)^2], and what two
correlated inputs share, E[f(u) f(v)]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

NODES = 4000  # on 8 standard deviations each way; kinks need many, and an even number avoids 0
STEP = 0.02  # between the values of q in the table, in log q
TERMS = 4  # of the Hermite series; what is left of it counts as one more


def expected_squares(function: Activation, q: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments of an activation and of its derivative for normal inputs of variance ``q``.

    Args:
        function: elementwise and differentiable almost everywhere.
        q: any shape, non-negative; units of the squared input.

    Returns:
        E[f(z)^2] and E[f'(z)^2], each with the shape of ``q``. They come from a table in log q with
        linear interpolation (to about 0.01 %), so the cost does not grow with the map.

    >>> value, slope = expected_squares(torch.relu, torch.tensor([1.0, 4.0]))
    >>> [round(v, 3) for v in (*value.tolist(), *slope.tolist())]
    [0.5, 2.0, 0.5, 0.5]
    """
    row = tabulated(function, q)
    return row(0), row(1)


def series(row: Callable[[int], Tensor], rho: Tensor) -> Tensor:
    """E[f(u) f(v)] for normal u, v with mean zero, E[u^2] = E[v^2] = q and correlation ``rho``.

    In Hermite polynomials it is a power series in the correlation with the squared coefficients of
    f; the last term takes the remainder, so that equal inputs give E[f(u)^2].

    Args:
        row: of the table that ``tabulated`` makes for f and q.
        rho: 0 to 1, broadcasts with q.

    >>> half = series(tabulated(torch.relu, torch.tensor(1.0)), torch.tensor(0.0))
    >>> round(float(half * 2 * math.pi), 3)  # the square of E[relu(z)]
    1.0
    """
    terms = 1 if not rho.any() else TERMS + 1
    return sum(row(2 + n).square() * rho.clamp(0, 1) ** n for n in range(terms))


def tabulated(
    function: Activation, q: Tensor, known: dict[int, Tensor] | None = None
) -> Callable[[int], Tensor]:
    """Rows of a table in log q, interpolated at ``q`` when they are asked for: E[f^2], E[f'^2],
    then the Hermite coefficients of f, the first of which is E[f].

    The scales of the table are multiples of ``STEP``; those of this function that were made before
    are found in ``known``, and new ones are left there.
    """
    if not q.isfinite().all():
        raise ValueError("second moments are not finite: the model's weights hold NaN or are huge")
    known = {} if known is None else known
    places = q.clamp_min(1e-30).log() / STEP
    low = math.floor(places.detach().min())
    high = max(math.ceil(places.detach().max()), low + 1)  # one step wide, or there is no slope
    scales = range(low, high + 1)
    missing = [scale for scale in scales if scale not in known]
    if missing:
        grid = torch.tensor(missing, dtype=torch.float64, device=q.device) * STEP
        known.update(zip(missing, on_grid(function, grid.exp()).unbind(1), strict=True))
    table = torch.stack([known[scale] for scale in scales], 1).to(q.dtype)
    left = (places.detach() - low).int().clamp_(0, high - low - 1).flatten()
    between = places - low - left.view_as(q)

    def row(n: int) -> Tensor:  # index_select is much faster than table[n][left]
        ends = (end.index_select(0, left).view_as(q) for end in (table[n, :-1], table[n, 1:]))
        return torch.lerp(*ends, between)

    return row


def on_grid(function: Activation, q: Tensor) -> Tensor:
    """(3 + TERMS, len(q)), by the midpoint rule: E[f(z)^2], E[f'(z)^2], the Hermite coefficients
    E[f(z) He_n(t)] / sqrt(n!) for z = sqrt(q) t, and the root of what they leave of E[f(z)^2]."""
    width = 16 / NODES
    t = (torch.arange(NODES, dtype=torch.float64, device=q.device) + 0.5) * width - 8
    weight = torch.exp(-t.square() / 2) * (width / math.sqrt(2 * math.pi))
    with torch.enable_grad():
        z = (q.sqrt()[:, None] * t).requires_grad_()
        out = function(z)
        (derivative,) = torch.autograd.grad(out.sum(), z)
    out = out.detach()
    polynomials = [torch.ones_like(t), t]
    for n in range(1, TERMS - 1):
        polynomials.append(t * polynomials[n] - n * polynomials[n - 1])
    basis = torch.stack([p / math.sqrt(math.factorial(n)) for n, p in enumerate(polynomials)])
    coefficients = (basis * weight) @ out.T
    value = out.square() @ weight
    rest = (value - coefficients.square().sum(0)).clamp_min(0).sqrt()
    slope = derivative.square() @ weight
    return torch.stack([value, slope, *coefficients, rest])
