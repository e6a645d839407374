"""Pools and means. Averages look at what positions share: the square of a mean does not average
out."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.second_moments import SecondMoment, ratio, second_moment_rule

CORRELATED = "average pooling: positions are correlated, squares do not just add up"
WINNERS = "max pooling: every pixel of a window is taken to win equally often"


@second_moment_rule(F.max_pool2d, torch.max_pool2d)
def through_max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    stride = stride or kernel_size
    ones = x.moments.new_ones(1, 1, *x.shape[2:])
    pooled = F.max_pool2d(ones.to("meta"), kernel_size, stride, padding, dilation, ceil_mode)
    size = pooled.shape[2:]
    window = (kernel_size, stride, padding, dilation, size)
    pixels = window_sum(ones, *window)
    average = x.average
    return x.through(
        lambda moments: window_sum(on_map(moments, x), *window) / pixels,
        (*x.shape[:2], *size),
        average=lambda: window_sum(on_map(average(), x), *window) / pixels,
        symmetric=False,
    )


@second_moment_rule(F.adaptive_max_pool2d)
def through_adaptive_max_pool(x, output_size, return_indices=False):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    average = x.average
    return x.through(
        lambda moments: F.adaptive_avg_pool2d(on_map(moments, x), output_size),
        (*x.shape[:2], None, None),
        average=lambda: F.adaptive_avg_pool2d(on_map(average(), x), output_size),
        symmetric=False,
    )


@second_moment_rule(F.avg_pool2d)
def through_avg_pool(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """Coefficients squared: the average over the window, divided once more by its size."""
    stride = stride or kernel_size

    def pool(moments: Tensor) -> Tensor:
        rest = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(on_map(moments, x), *rest)

    ones = x.moments.new_ones(1, 1, *x.shape[2:])
    whole = pool(ones)  # below 1 where a window sticks out
    pixels = window_sum(ones, kernel_size, stride, padding, 1, whole.shape[2:])
    return averaged(x, pool, whole, pixels, (*x.shape[:2], None, None))


@second_moment_rule(F.adaptive_avg_pool2d)
def through_adaptive_avg_pool(x, output_size):
    """Coefficients squared: the average over each window, divided once more by its size."""

    def pool(moments: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(on_map(moments, x), output_size)

    ones = x.moments.new_ones(1, 1, *x.shape[2:])
    whole = pool(ones)
    pixels = adaptive_window_pixels(ones, whole.shape[2:])
    return averaged(x, pool, whole, pixels, (*x.shape[:2], None, None))


@second_moment_rule(torch.mean, torch.Tensor.mean)
def through_mean(x, dim=None, keepdim=False, *, dtype=None):
    """Coefficients squared: the mean, divided once more by the number of entries."""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [d % x.ndim for d in dims]
    entries = math.prod(x.shape[d] for d in dims)
    shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
    if not keepdim:
        shape = [size for d, size in enumerate(x.shape) if d not in dims]
    ones = torch.ones((), dtype=x.moments.dtype, device=x.moments.device)
    return averaged(x, lambda moments: moments.mean(dims, keepdim), ones, ones * entries, shape)


def averaged(
    x: SecondMoment,
    mean: Callable[[Tensor], Tensor],
    whole: Tensor,
    entries: Tensor,
    shape: Sequence[int | None],
) -> SecondMoment:
    """Behind averages of ``entries`` each, whose coefficients add up to ``whole``.

    What entries share adds up before it is squared; the rest is taken to be uncorrelated.
    """
    average = x.average

    def first() -> Tensor:
        return mean(with_dimensions(average(), x.ndim)) * whole if average().any() else average()

    if entries.max() == 1:
        return x.through(lambda moments: mean(moments) * whole, shape, average=first)
    x.run.approximate(CORRELATED)
    rho = x.correlation()
    together = mean(rho * x.second()) * whole  # the square of a sum of equal means
    new = x.through(
        lambda moments: mean(moments) * whole / entries,
        shape,
        shift=together * (1 - 1 / entries) if rho.any() else 0.0,
        correlation=lambda: ratio(together, new.second()) if rho.any() else rho,
        average=first,
    )
    return new


def on_map(moments: Tensor, x: SecondMoment) -> Tensor:
    """With every pixel written out; channels that are equal stay one."""
    return with_dimensions(moments, 4).expand(1, -1, *x.shape[2:])


def with_dimensions(values: Tensor, count: int) -> Tensor:
    """As many dimensions as the tensor that the values broadcast to."""
    return values.reshape([1] * (count - values.ndim) + list(values.shape))


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both axes, or one each."""
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[:2]
    return first, second


def window_sum(values, kernel_size, stride, padding, dilation, size):
    """Sum over each pooling window, (.., *size); pixels outside the image count nothing.

    The image is padded on the right and below until the last window fits, as ceil_mode needs.
    """
    kernel, stride, padding, dilation = map(pair, (kernel_size, stride, padding, dilation))
    reach = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)
    ]
    rows, columns = values.shape[2:]
    right = max(0, reach[1] - columns - padding[1])
    below = max(0, reach[0] - rows - padding[0])
    padded = F.pad(values, (padding[1], right, padding[0], below))
    weight = padded.new_ones(values.shape[1], 1, *kernel)
    out = F.conv2d(padded, weight, None, stride, 0, dilation, values.shape[1])
    return out[..., : size[0], : size[1]]


def adaptive_window_pixels(values: Tensor, size: Sequence[int]) -> Tensor:
    """How many pixels each window of an adaptive pool covers, (height, width) of its output."""

    def lengths(pixels: int, windows: int) -> Tensor:
        index = torch.arange(windows, device=values.device)
        start = index * pixels // windows
        end = -(-(index + 1) * pixels // windows)
        return (end - start).to(values.dtype)

    return torch.outer(lengths(values.shape[2], size[0]), lengths(values.shape[3], size[1]))
