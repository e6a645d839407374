"""What layers whose kernels change with the position do to second moments, and to covariances.

With banks F_k and combining weights a_k the kernel at a position is K = sum over k of a_k F_k, and
K as a whole has to be squared. With drawn weights that is the sum over pairs of banks of a_k a_l
F_k F_l: a low-rank layer again, with a bank for each pair. With expected weights banks are
independent, and sum over k of a_k^2 E[F^2] is left. Kernels at two positions p and p' have
sum over k of a_k(p) a_k(p') in common; those of a locally connected layer nothing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.covariances import behind_kernels, covariance_rule
from pilcro.neighbours.locally_connected import locally_connected2d
from pilcro.neighbours.low_rank import low_rank_conv2d
from pilcro.rules.layers import sum_groups
from pilcro.rules.moving import plus_constant
from pilcro.second_moments import (
    SecondMoment,
    second_moment_rule,
    unsupported,
    written,
)

# Where banks cancel, rounding must not leave a square below zero: above that of double precision,
# far below that of single.
ROUNDING = 1e-12


@second_moment_rule(low_rank_conv2d)
def through_low_rank(
    x, weight, combining, bias=None, spatial_bias=None, stride=1, padding=0, dilation=1
):
    """The kernels of the positions, squared."""
    if combining.ndim != 3:
        raise unsupported(low_rank_conv2d, (x,), {}, "with combining weights for each image")
    setting = (stride, padding, dilation)
    squared = x.run.squared(weight)
    table = combining.double()
    if x.run.expected:
        function = equal_kernels(x, squared[:1, :1], table.square().sum(0), *setting)
    else:
        banks = weight.double().unflatten(0, (len(table), -1))
        one, two = torch.triu_indices(len(table), len(table), device=table.device)
        products = (banks[one] * banks[two]).flatten(0, 1)
        twice = 2 - (1 - ROUNDING) * (one == two).double()
        pairs = twice[:, None, None] * table[one] * table[two]

        def function(moments: Tensor) -> Tensor:
            full = written(moments, x.shape).double()
            return low_rank_conv2d(full, products, pairs, None, None, *setting).to(moments.dtype)

    new = x.weighted(function, (1, len(weight) // len(table), None, None), weight, bias, 2)
    if spatial_bias is None or not spatial_bias.any():
        return new
    return plus_constant(new, spatial_bias)


@second_moment_rule(locally_connected2d)
def through_locally_connected(x, weight, bias=None, stride=1, padding=0, dilation=1):
    """The same layer with squared weights."""
    squared = x.run.squared(weight)
    setting = (stride, padding, dilation)
    if x.run.expected:
        function = equal_kernels(x, squared[0, 0, :1, :1], 1.0, *setting)
    else:

        def function(moments: Tensor) -> Tensor:
            return locally_connected2d(written(moments, x.shape), squared, None, *setting)

    return x.weighted(function, (1, weight.shape[2], None, None), weight, bias)


def equal_kernels(
    x: SecondMoment, kernel: Tensor, gain: Tensor | float, *setting: object
) -> Callable[[Tensor], Tensor]:
    """Moments behind kernels that are alike but for a factor at each position."""

    def function(moments: Tensor) -> Tensor:
        total = sum_groups(moments.expand(1, -1, *x.shape[2:]), x.shape[1], 1)
        return F.conv2d(total, kernel, None, *setting) * gain

    return function


@covariance_rule(low_rank_conv2d)
def pairs_through_low_rank(
    x, weight, combining, bias=None, spatial_bias=None, stride=1, padding=0, dilation=1
):
    """Those behind a convolution, times what the kernels at both positions have in common."""
    if combining.ndim != 3 or (spatial_bias is not None and spatial_bias.any()):
        return NotImplemented
    table = combining.to(x.moments.second.dtype)
    together = torch.einsum("kij,klm->ijlm", table, table)
    width = len(weight) // len(table)
    return behind_kernels(x, weight, bias, width, stride, padding, dilation, together=together)


@covariance_rule(locally_connected2d)
def pairs_through_locally_connected(x, weight, bias=None, stride=1, padding=0, dilation=1):
    """Nothing is left but the diagonal: kernels at two positions are independent."""
    if bias is not None and bias.any():
        return NotImplemented
    rows, columns, width = weight.shape[:3]
    together = torch.eye(rows * columns, dtype=torch.float64, device=weight.device)
    together = together.reshape(rows, columns, rows, columns)
    return behind_kernels(x, weight, None, width, stride, padding, dilation, together=together)
