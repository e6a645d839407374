"""The table of rules: what each operation does to second moments. One small function each.

A rule takes what the torch function takes, with a :class:`SecondMoment` in place of the tensor that
depends on the image. Chapter 2 derives those for convolutions and padding.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.quadrature import expected_squares
from pilcro.second_moments import (
    SecondMoment,
    identity,
    joint_flips,
    moments_among,
    own_flips,
    second_moment_rule,
    unsupported,
)

# --- layers with weights ---------------------------------------------------------------------
# Biases change no gradient, and symmetric ones leave a gate open half of the time.


@second_moment_rule(F.conv2d)
def through_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The same convolution with squared weights."""
    fan_in, size = weight.shape[1], weight.shape[2:]
    if x.shape[1] != fan_in * groups:
        raise RuntimeError(f"expected {fan_in * groups} channels, got {x.shape[1]}")
    squared = x.run.squared(weight)
    if not x.run.expected:
        out = F.conv2d(x.full(), squared, None, stride, padding, dilation, groups)
        return x.weighted(out, out.shape, weight)
    # Equal weights: add up the channels of each group, then one kernel serves all.
    per_group = sum_groups(x, groups)
    kernel = squared[:1, :1].expand(per_group.shape[1], 1, *size)
    out = F.conv2d(per_group, kernel, None, stride, padding, dilation, per_group.shape[1])
    if out.shape[1] > 1:
        out = out.repeat_interleave(weight.shape[0] // groups, dim=1)
    return x.weighted(out, (len(out), weight.shape[0], *out.shape[2:]), weight)


def sum_groups(x: SecondMoment, groups: int) -> Tensor:
    """Sum of the channels of each group: (1, groups, h, w), or (1, 1, h, w) if all are equal."""
    if x.moments.shape[1] == 1:
        return x.moments * (x.shape[1] // groups)
    return x.moments.unflatten(1, (groups, -1)).sum(2)


@second_moment_rule(F.linear)
def through_linear(x, weight, bias=None):
    """The same matrix with squared entries."""
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"expected {weight.shape[1]} features, got {x.shape[-1]}")
    squared = x.run.squared(weight)
    shape = (*x.shape[:-1], weight.shape[0])
    if not x.run.expected:
        return x.weighted(F.linear(x.full(), squared), shape, weight)
    out = x.full().sum(-1, keepdim=True) * squared[0, 0]
    return x.weighted(out if x.ndim == 2 else out.expand(shape), shape, weight)


CONSTANT = "statistics are taken as constants, the variance as the mean square"


@second_moment_rule(F.batch_norm)
def through_batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """gamma^2 / variance per channel; in train mode the variance is that of the forward pass, and
    the square of a channel's mean, which the batch shares, is not taken out of it."""
    known = weight if weight is not None else running_var
    if known is not None and known.shape[0] != x.shape[1]:
        raise RuntimeError(f"expected {known.shape[0]} channels, got {x.shape[1]}")

    def per_channel(vector: Tensor) -> Tensor:
        """One number a channel; with expected weights, their mean, one for the layer."""
        vector = vector.to(x.moments.dtype)
        vector = vector.mean().reshape(1) if x.run.expected else vector
        return vector.reshape(1, -1, *[1] * (x.ndim - 2))

    gain = 1.0 if weight is None else weight.square()
    if not training:
        shifts = [shift for shift in (running_mean, bias) if shift is not None and shift.any()]
        scaled = x.moments * per_channel(gain / (running_var + eps))
        return x.with_moments(scaled, symmetric=not shifts)
    x.run.approximate(f"batch norm in train mode: batch {CONSTANT}")
    variance = x.moments.detach().mean(dim=[0, *range(2, x.ndim)], keepdim=True)
    normal = x.moments / (variance + eps)
    normal = normal if weight is None else normal * per_channel(gain)
    return x.with_moments(normal, symmetric=bias is None or not bias.any())


@second_moment_rule(F.layer_norm)
def through_layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """gamma^2 / variance, the variance that of the forward pass over the normalised dimensions."""
    x.run.approximate(f"layer norm: its {CONSTANT}")
    moments = x.full()
    variance = moments.detach().mean([-1 - i for i in range(len(normalized_shape))], keepdim=True)
    normal = moments / (variance + eps)
    normal = normal if weight is None else normal * weight.square()
    flips = x.flips if bias is None or not bias.any() else ()
    return SecondMoment(normal, x.shape, x.run, x.sources, flips)


# --- activations and dropout -----------------------------------------------------------------


@second_moment_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Open half of the time."""
    if not x.flips:
        x.run.approximate(
            "ReLU: its input is not symmetric around zero, so it need not be open half of the time"
        )
    new = x.with_moments(x.moments / 2, symmetric=False)
    return x.overwrite(new) if inplace else new


@second_moment_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


def through_activation(function: Callable, x: SecondMoment, *args, inplace=False, **kwargs):
    """E[f(z)^2] goes on, E[f'(z)^2] comes back, for z ~ N(0, q)."""
    x.run.approximate(f"{function.__name__}: its input is taken to be normal with mean zero")
    q = x.moments.detach()
    value, slope = expected_squares(lambda z: function(z, *args, **kwargs), q)
    new = x.with_moments(value + slope * (x.moments - q), symmetric=False)
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
    new = x.with_moments(x.moments * (0.0 if p == 1 else 1 / (1 - p)))
    return x.overwrite(new) if inplace else new


# --- pooling -----------------------------------------------------------------------------------

CORRELATED = "average pooling: positions are correlated, squares do not just add up"
WINNERS = "max pooling: every pixel of a window is taken to win equally often"


@second_moment_rule(F.max_pool2d, torch.max_pool2d)
def through_max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    stride = stride or kernel_size
    size = F.max_pool2d(
        x.moments.detach().to("meta"), kernel_size, stride, padding, dilation, ceil_mode
    ).shape[2:]
    window = (kernel_size, stride, padding, dilation, size)
    ones = torch.ones_like(x.moments[:1, :1])
    share = window_sum(x.moments, *window) / window_sum(ones, *window)
    return x.with_moments(share, symmetric=False)


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
    if pair(kernel_size) != (1, 1):
        x.run.approximate(CORRELATED)
    stride = stride or kernel_size

    def pool(values: Tensor) -> Tensor:
        rest = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(values, *rest)

    ones = torch.ones_like(x.moments[:1, :1])
    average = pool(ones)
    pixels = window_sum(ones, kernel_size, stride, padding, 1, average.shape[2:])
    return x.with_moments(pool(x.moments) * average / pixels)


@second_moment_rule(F.adaptive_avg_pool2d)
def through_adaptive_avg_pool(x, output_size):
    """Coefficients squared: the average over each window, divided once more by its size."""
    out = F.adaptive_avg_pool2d(x.moments, output_size)
    pixels = adaptive_window_pixels(x.moments, out.shape[2:])
    if pixels.max() > 1:
        x.run.approximate(CORRELATED)
    return x.with_moments(out / pixels)


@second_moment_rule(torch.mean, torch.Tensor.mean)
def through_mean(x, dim=None, keepdim=False, *, dtype=None):
    """Coefficients squared: the mean, divided once more by the number of entries."""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [d % x.ndim for d in dims]
    entries = math.prod(x.shape[d] for d in dims)
    if entries > 1:
        x.run.approximate(CORRELATED)
    if 1 in dims:
        out = x.full().mean(dims, keepdim) / entries
        return SecondMoment(out, out.shape, x.run, x.sources, x.flips)
    return x.with_moments(x.moments.mean(dims, keepdim) / entries)


@second_moment_rule(F.adaptive_max_pool2d)
def through_adaptive_max_pool(x, output_size, return_indices=False):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    return x.with_moments(F.adaptive_avg_pool2d(x.moments, output_size), symmetric=False)


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


# --- moving, joining ---------------------------------------------------------------------------


@second_moment_rule(F.pad)
def through_pad(x, pad, mode="constant", value=None):
    """Padding with a constant adds no dependence; the other modes repeat pixels."""
    touches_channels = len(pad) > 2 * (x.ndim - 2)
    values = x.full() if touches_channels else x.moments
    out = F.pad(values, pad, mode)
    channels = out.shape[1] if touches_channels else None
    return x.with_moments(out, channels=channels, symmetric=not value)


def moved(x: SecondMoment, moments: Tensor) -> SecondMoment:
    """Entries change place, nothing else."""
    new = SecondMoment(moments, moments.shape, x.run, x.sources, x.flips)
    new.is_view = True
    return new


def through_move(function: Callable, x: SecondMoment, *args, **kwargs):
    """The same move of the moments; some moves give several parts."""
    out = function(x.full(), *args, **kwargs)
    return moved(x, out) if isinstance(out, Tensor) else tuple(moved(x, part) for part in out)


for name in (
    "chunk",
    "expand",
    "flatten",
    "flip",
    "permute",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "transpose",
    "unbind",
    "unsqueeze",
    "__getitem__",
):
    method = getattr(torch.Tensor, name)
    functions = {method, getattr(torch, name, method)}
    second_moment_rule(*functions)(partial(through_move, method))
# a view may need a copy where equal channels are stored once
second_moment_rule(torch.Tensor.view)(partial(through_move, torch.Tensor.reshape))


@second_moment_rule(
    torch.Tensor.contiguous, torch.Tensor.clone, torch.Tensor.to, torch.Tensor.float
)
def through_copy(x, *args, **kwargs):
    """Another layout, type or device, the same moments (which keep theirs)."""
    return x.with_moments(x.moments)


@second_moment_rule(
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, joins=True
)
def through_add(x, other, *, alpha=1):
    """Second moments of branches add up if a change of sign of one is none of the other."""
    if not isinstance(x, SecondMoment):
        x, other, alpha = other.with_moments(alpha**2 * other.moments), x, 1  # constant + tensor
    if not isinstance(other, SecondMoment):  # a constant shifts the mean, no gradient
        shift = torch.as_tensor(other).detach().to(x.moments) * alpha
        shape = torch.broadcast_shapes(x.shape, shift.shape)
        flips = () if shift.any() else x.flips
        return SecondMoment(x.moments + shift.square(), shape, x.run, x.sources, flips)
    shape = torch.broadcast_shapes(x.shape, other.shape)
    if x is other:  # the same tensor twice is a scaling, not two branches
        return SecondMoment(x.moments * (1 + alpha) ** 2, shape, x.run, x.sources, x.flips)
    if not own_flips(x, other):
        x.run.approximate("addition: branches share their last weights, squares do not just add up")
    out = x.moments + alpha**2 * other.moments
    sources = x.sources | other.sources
    return SecondMoment(out, shape, x.run, sources, joint_flips([x, other]))


@second_moment_rule(
    torch.sub,
    torch.Tensor.sub,
    torch.Tensor.__sub__,
    torch.Tensor.__rsub__,
    joins=True,
)
def through_sub(x, other, *, alpha=1):
    return through_add(x, other, alpha=-alpha)


@second_moment_rule(torch.Tensor.add_, torch.Tensor.__iadd__, joins=True)
def through_add_(x, other, *, alpha=1):
    if not isinstance(x, SecondMoment):
        raise unsupported(torch.Tensor.add_, (x, other), {}, "of a constant")
    return x.overwrite(through_add(x, other, alpha=alpha))


@second_moment_rule(
    torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__, joins=True
)
def through_mul(x, other):
    """A constant factor is squared; second moments of independent factors multiply (a gate)."""
    if not isinstance(x, SecondMoment):
        x, other = other, x
    if isinstance(other, SecondMoment):
        return through_product(x, other)
    factor = torch.as_tensor(other).detach().to(x.moments).square()
    if factor.numel() == 1:
        return x.with_moments(x.moments * factor)
    if identity(other) not in x.run.parameters:
        x.run.approximate("product with a tensor that is not a parameter: taken as it is")
    out = x.full() * factor
    return SecondMoment(out, out.shape, x.run, x.sources, x.flips)


def through_product(x: SecondMoment, gate: SecondMoment) -> SecondMoment:
    """Both factors carry gradients: the product rule is autograd's."""
    x.run.approximate("product: its factors are taken to be independent")
    shape = torch.broadcast_shapes(x.shape, gate.shape)
    sources = x.sources | gate.sources
    return SecondMoment(x.moments * gate.moments, shape, x.run, sources, own_flips(x, gate))


@second_moment_rule(torch.Tensor.mul_, torch.Tensor.__imul__, joins=True)
def through_mul_(x, other):
    if not isinstance(x, SecondMoment):
        raise unsupported(torch.Tensor.mul_, (x, other), {}, "of a constant")
    return x.overwrite(through_mul(x, other))


@second_moment_rule(torch.div, torch.Tensor.div, torch.Tensor.__truediv__)
def through_div(x, other):
    return through_mul(x, 1 / other)


@second_moment_rule(torch.cat, torch.concat, torch.concatenate, joins=True)
def through_cat(tensors, dim=0):
    """Side by side."""
    parts = moments_among(tensors)
    if len(parts) < len(tensors):
        raise unsupported(torch.cat, tensors, {}, "with a constant")
    out = torch.cat([part.full() for part in parts], dim)
    sources = frozenset().union(*(part.sources for part in parts))
    return SecondMoment(out, out.shape, parts[0].run, sources, joint_flips(parts))
