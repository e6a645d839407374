"""Layers with weights. Biases change no gradient, and symmetric ones leave a gate open half of
the time."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pilcro.second_moments import SecondMoment, second_moment_rule, written


@second_moment_rule(F.conv2d)
def through_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The same convolution with squared weights."""
    fan_in = weight.shape[1]
    if x.shape[1] != fan_in * groups:
        raise RuntimeError(f"expected {fan_in * groups} channels, got {x.shape[1]}")
    squared = x.run.squared(weight)

    def drawn(moments: Tensor) -> Tensor:
        full = written(moments, x.shape)
        return F.conv2d(full, squared, None, stride, padding, dilation, groups)

    def expected(moments: Tensor) -> Tensor:
        """Equal weights: add up the channels of each group, then one kernel serves all."""
        per_group = sum_groups(moments.expand(1, -1, *x.shape[2:]), x.shape[1], groups)
        one = F.conv2d(per_group.transpose(0, 1), kernel, None, stride, padding, dilation)
        return one.transpose(0, 1)

    kernel = squared[:1, :1]
    shape = (1, weight.shape[0], None, None)
    return x.weighted(expected if x.run.expected else drawn, shape, weight, bias, trailing=2)


def sum_groups(moments: Tensor, channels: int, groups: int) -> Tensor:
    """Sum of the channels of each group, (1, groups, h, w), or one for each block of equal ones."""
    blocks = moments.shape[1]
    if blocks % groups == 0:
        return moments.unflatten(1, (groups, -1)).sum(2) * (channels // blocks)
    if groups % blocks == 0:
        return moments * (channels // groups)
    return sum_groups(moments.repeat_interleave(channels // blocks, 1), channels, groups)


@second_moment_rule(F.linear)
def through_linear(x, weight, bias=None):
    """The same matrix with squared entries."""
    squared = x.run.squared(weight)
    return x.weighted(linear(x, squared), (*x.shape[:-1], len(weight)), weight, bias)


def linear(x: SecondMoment, squared: Tensor) -> Callable[[Tensor], Tensor]:
    """Moments behind a matrix with these squared entries, (outputs, features)."""
    features = squared.shape[1]
    if x.shape[-1] != features:
        raise RuntimeError(f"expected {features} features, got {x.shape[-1]}")
    if not x.run.expected:
        return lambda moments: F.linear(written(moments, x.shape), squared)
    return lambda moments: total(moments, -1, features) * squared[0, 0]


def total(moments: Tensor, dim: int, entries: int) -> Tensor:
    """Sum over a dimension of ``entries``, each block of which is stored once."""
    return moments.sum(dim, keepdim=True) * (entries // moments.shape[dim])
