"""Activations and dropout, elementwise."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.quadrature import series, tabulated
from pilcro.second_moments import SecondMoment, ratio, second_moment_rule


@second_moment_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Open half of the time, if its input is symmetric around zero."""
    second, rho, average = x.second, x.correlation, x.average
    if x.flips:
        new = x.through(
            lambda moments: moments / 2,
            correlation=lambda: 2 * rectified(rho(), torch.zeros_like(rho()))[2],
            average=lambda: (second() / (2 * math.pi)).sqrt(),
            symmetric=False,
        )
        return x.overwrite(new) if inplace else new
    x.run.approximate(
        "ReLU: its input is not symmetric around zero, so it need not be open half of the time; "
        "it is taken to be normal"
    )
    mean = average()
    number = torch.finfo(mean.dtype)
    variance = (second() - mean.square()).maximum(number.eps * second()).clamp_min(number.tiny)
    inner = (rho() * second() - mean.square()) / variance
    open_, square, product, first = rectified(inner, mean / variance.sqrt())
    new = x.through(
        lambda moments: moments * open_,
        shift=square * variance - open_ * second(),
        correlation=lambda: ratio(product, square),
        average=lambda: first * variance.sqrt(),
        symmetric=False,
    )
    return x.overwrite(new) if inplace else new


def rectified(rho: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    """How often u is positive, E[relu(u)^2], E[relu(u) relu(v)] and E[relu(u)] for normal u, v of
    variance 1, this mean and correlation ``rho``.

    The product is a power series in the correlation, as in :func:`pilcro.quadrature.series`.
    """
    density = torch.exp(-mean.square() / 2) / math.sqrt(2 * math.pi)
    above = torch.special.ndtr(mean)
    first = mean * above + density
    square = (1 + mean.square()) * above + mean * density
    terms = [first.square(), above.square(), density.square() / 2, (density * mean).square() / 6]
    rest = (square - sum(terms)).clamp_min(0)
    rho = rho.clamp(0, 1)
    product = sum(term * rho**n for n, term in enumerate([*terms, rest]))
    return above, square, product, first


@second_moment_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


def through_activation(function, x, *args, inplace=False, **kwargs):
    """E[f(z)^2] goes on, E[f'(z)^2] comes back, for z ~ N(0, q)."""
    x.run.approximate(f"{function.__name__}: its input is taken to be normal with mean zero")
    q, rho = x.second(), x.correlation
    known = x.run.tables.setdefault((function, args, *kwargs.items()), {})
    row = tabulated(partial(function, *args, **kwargs), q, known)
    value, slope = row(0), row(1)
    new = SecondMoment(
        value + slope * (x.moments - q),
        x.shape,
        x.run,
        x.sources,
        (),
        second=lambda: value,
        correlation=lambda: ratio(series(row, rho()), value),
        average=lambda: row(2),
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
    rho = x.correlation
    new = x.through(
        lambda moments: moments * gain, correlation=lambda: rho() * (1 - p), average=x.average
    )
    return x.overwrite(new) if inplace else new
