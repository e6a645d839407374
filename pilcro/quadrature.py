"""What an activation f does to second moments, for z ~ N(0, q): E[f(z)^2], E[f'(z)^2], and what two
correlated inputs share, E[f(u) f(v)]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

NODES = 4000  # on 8 standard deviations each way; kinks need many, and an even number avoids 0
STEP = 0.05  # between the values of q in the table, in log q
TERMS = 8  # of the Hermite series; what is left of it counts as one more


def expected_squares(function: Activation, q: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments of an activation and of its derivative for normal inputs of variance ``q``.

    Args:
        function: elementwise and differentiable almost everywhere.
        q: any shape, non-negative; units of the squared input.

    Returns:
        E[f(z)^2] and E[f'(z)^2], each with the shape of ``q``. They come from a table in log q with
        linear interpolation (to about 0.05 %), so the cost does not grow with the map.

    >>> value, slope = expected_squares(torch.relu, torch.tensor([1.0, 4.0]))
    >>> value.tolist(), [round(s, 3) for s in slope.tolist()]
    ([0.5, 2.0], [0.5, 0.5])
    """
    value, slope = looked_up(lambda grid: squares_on_grid(function, grid), q)
    return value, slope


def expected_products(function: Activation, q: Tensor, shared: Tensor) -> Tensor:
    """E[f(u) f(v)] for normal u, v with mean zero, E[u^2] = E[v^2] = q and E[u v] = shared.

    In Hermite polynomials it is a power series in the correlation shared / q, with the squared
    coefficients of f; the last term takes the remainder, so that equal inputs give E[f(u)^2].

    Args:
        function: elementwise.
        q, shared: shapes that broadcast; 0 <= shared <= q.

    >>> half = expected_products(torch.relu, torch.tensor(1.0), torch.tensor(0.0))
    >>> round(float(half * 2 * math.pi), 3)  # the square of E[relu(z)]
    1.0
    """
    coefficients = looked_up(lambda grid: hermite_on_grid(function, grid).square(), q)
    rho = (shared / q.clamp_min(1e-30)).clamp(0, 1)
    return sum(square * rho**n for n, square in enumerate(coefficients))


def expected_value(function: Activation, q: Tensor) -> Tensor:
    """E[f(z)], as :func:`expected_squares`."""
    return looked_up(lambda grid: hermite_on_grid(function, grid)[:1], q)[0]


def looked_up(make: Callable[[Tensor], Tensor], q: Tensor) -> tuple[Tensor, ...]:
    """Every row of a table in log q, interpolated at ``q``."""
    logs = q.double().clamp_min(1e-30).log()
    low, high = float(logs.detach().min()), float(logs.detach().max())
    count = math.ceil((high - low) / STEP) + 1
    grid = torch.linspace(low, high, count, dtype=torch.float64, device=q.device)
    table = make(grid.exp())
    if count == 1:
        rows = table.expand(-1, q.numel())
    else:
        place = (logs.flatten() - low) / (high - low) * (count - 1)
        left = place.detach().long().clamp_max(count - 2)
        rows = torch.lerp(table[:, left], table[:, left + 1], place - left)
    return tuple(row.reshape(q.shape).to(q.dtype) for row in rows)


def nodes(q: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal nodes and weights of the midpoint rule."""
    width = 16 / NODES
    t = (torch.arange(NODES, dtype=torch.float64, device=q.device) + 0.5) * width - 8
    return t, torch.exp(-t.square() / 2) * (width / math.sqrt(2 * math.pi))


def squares_on_grid(function: Activation, q: Tensor) -> Tensor:
    """(2, len(q)): E[f(z)^2] and E[f'(z)^2]."""
    t, weight = nodes(q)
    with torch.enable_grad():
        z = (q.sqrt()[:, None] * t).requires_grad_()
        out = function(z)
        (derivative,) = torch.autograd.grad(out.sum(), z)
    return torch.stack([out.detach().square() @ weight, derivative.square() @ weight])


def hermite_on_grid(function: Activation, q: Tensor) -> Tensor:
    """(TERMS + 1, len(q)): coefficients E[f(z) He_n(t)] / sqrt(n!) for z = sqrt(q) t, and the root
    of what their squares leave of E[f(z)^2]."""
    t, weight = nodes(q)
    out = function(q.sqrt()[:, None] * t).detach()
    polynomials = [torch.ones_like(t), t]
    for n in range(1, TERMS - 1):
        polynomials.append(t * polynomials[n] - n * polynomials[n - 1])
    found = torch.stack(
        [
            out @ (weight * polynomial) / math.sqrt(math.factorial(n))
            for n, polynomial in enumerate(polynomials)
        ]
    )
    rest = out.square() @ weight - found.square().sum(0)
    return torch.cat([found, rest.clamp_min(0).sqrt()[None]])
