"""Activations and dropout, elementwise."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.quadrature import TERMS, expected_products, expected_squares, expected_value
from pilcro.second_moments import SecondMoment, second_moment_rule


@second_moment_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Open half of the time, if its input is symmetric around zero."""
    second, shared, average = x.second, x.shared, x.average
    if x.flips:
        new = x.through(
            lambda moments: moments / 2,
            shared=lambda: rectified(second(), shared(), average())[2],
            average=lambda: rectified(second(), shared(), average())[3],
            symmetric=False,
        )
        return x.overwrite(new) if inplace else new
    x.run.approximate(
        "ReLU: its input is not symmetric around zero, so it need not be open half of the time; "
        "it is taken to be normal"
    )
    open_, square, product, mean = rectified(second(), shared(), average())
    new = SecondMoment(
        square + open_ * (x.moments - second()),
        x.shape,
        x.run,
        x.sources,
        (),
        second=lambda: square,
        shared=lambda: product,
        average=lambda: mean,
    )
    return x.overwrite(new) if inplace else new


def rectified(second: Tensor, shared: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    """How often a normal u is positive, E[relu(u)^2], E[relu(u) relu(v)] and E[relu(u)], from
    E[u^2], E[u v] and E[u]; u and v have the same distribution.

    The product is a power series in the correlation of u and v, as in ``expected_products``.
    """
    variance = (second - mean.square()).clamp_min(torch.finfo(second.dtype).tiny)
    deviation = variance.sqrt()
    t = mean / deviation
    density, above = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(t)
    rho = ((shared - mean.square()) / variance).clamp(0, 1)
    coefficients = [t * above + density, above]
    hermite = [torch.ones_like(t), -t]
    for n in range(2, TERMS):
        coefficients.append(density * hermite[n - 2] / math.sqrt(math.factorial(n)))
        hermite.append(-t * hermite[-1] - (n - 1) * hermite[-2])
    squares = [coefficient.square() for coefficient in coefficients]
    whole = (1 + t.square()) * above + t * density
    squares.append((whole - sum(squares)).clamp_min(0))
    product = sum(square * rho**n for n, square in enumerate(squares))
    return above, variance * whole, variance * product, deviation * coefficients[0]


@second_moment_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


def through_activation(function, x, *args, inplace=False, **kwargs):
    """E[f(z)^2] goes on, E[f'(z)^2] comes back, for z ~ N(0, q)."""
    x.run.approximate(f"{function.__name__}: its input is taken to be normal with mean zero")
    q, shared = x.second(), x.shared
    function = partial(function, *args, **kwargs)
    value, slope = expected_squares(function, q)
    new = SecondMoment(
        value + slope * (x.moments - q),
        x.shape,
        x.run,
        x.sources,
        (),
        second=lambda: value,
        shared=lambda: expected_products(function, q, shared()),
        average=lambda: expected_value(function, q),
    )
    return x.overwrite(new) if inplace else new


for activation in (
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.mish,
    F.relu6,
    F.silu,
    F.softplus,
    torch.sigmoid,
    torch.Tensor.sigmoid,
    torch.tanh,
    torch.Tensor.tanh,
):
    second_moment_rule(activation)(partial(through_activation, activation))


@second_moment_rule(F.dropout)
def through_dropout(x, p=0.5, training=True, inplace=False):
    """Kept with probability 1 - p and then scaled by 1 / (1 - p)."""
    if not training or p == 0:
        return x
    gain = 0.0 if p == 1 else 1 / (1 - p)
    new = x.through(lambda moments: moments * gain, shared=x.shared, average=x.average)
    return x.overwrite(new) if inplace else new
