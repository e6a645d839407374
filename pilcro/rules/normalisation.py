"""Batch, layer and vector norms: a known gain, or one over the variance of a forward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.rules.layers import total
from pilcro.rules.moving import times
from pilcro.second_moments import ratio, second_moment_rule, unsupported

CONSTANT = "statistics are taken as constants"


@second_moment_rule(F.batch_norm)
def through_batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """gamma^2 / variance per channel; in train mode the mean and the variance over the batch and
    the positions are those of a large batch, and what the batch shares is taken out."""
    check_channels(x, running_var if weight is None else weight)
    trailing = x.ndim - 2
    if not training:
        scale, offset = as_affine(running_mean, running_var, weight, bias, eps)
        square = x.run.spread(scale.square(), trailing)
        if not offset.any():
            average = times(x.average, x.run.spread(scale, trailing))
            return x.through(lambda moments: moments * square, average=average)
        first, second = (x.run.spread(vector, trailing) for vector in (scale, offset))
        mean = x.average() * first
        shift = x.run.spread(offset.square(), trailing) + 2 * mean * second
        return x.through(
            lambda moments: moments * square,
            shift=shift,
            average=lambda: mean + second,
            symmetric=False,
        )
    x.run.approximate(f"batch norm in train mode: batch {CONSTANT}")
    over = [0, *range(2, x.ndim)]
    rho = x.correlation()
    rest = x.second() * (1 - rho)
    gain = 1.0 if weight is None else x.run.spread(weight.square(), trailing)
    gain = gain / (rest.mean(over, keepdim=True) + eps)
    shift = -rho * x.second() * gain if rho.any() else 0.0
    if bias is None or not bias.any():
        nothing = rho.new_zeros(())
        return x.through(lambda moments: moments * gain, shift=shift, correlation=lambda: nothing)
    square = x.run.spread(bias.square(), trailing)
    return x.through(
        lambda moments: moments * gain,
        shift=shift + square,
        correlation=lambda: ratio(square, rest * gain + square),
        average=lambda: x.run.spread(bias, trailing),
        symmetric=False,
    )


def as_affine(
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode multiplies by the first and adds the second, per channel."""
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, -running_mean * scale if bias is None else bias - running_mean * scale


def check_channels(x: Tensor, known: Tensor | None) -> None:
    """Parameters or statistics of batch norm hold one number a channel."""
    if known is not None and known.shape[0] != x.shape[1]:
        raise RuntimeError(f"expected {known.shape[0]} channels, got {x.shape[1]}")


@second_moment_rule(F.layer_norm)
def through_layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """gamma^2 / variance over the normalised dimensions, in the forward pass; what all features
    have in common is taken out."""
    x.run.approximate(f"layer norm: its {CONSTANT}")
    if tuple(x.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        raise RuntimeError(f"expected (..., {normalized_shape}), got {tuple(x.shape)}")
    over = [-1 - i for i in range(len(normalized_shape))]
    average, second = torch.broadcast_tensors(x.average(), x.second())
    common = average.mean(over, keepdim=True)
    variance = (second.mean(over, keepdim=True) - common.square()).clamp_min(0)
    gain = 1 / (variance + eps)
    if weight is not None:
        gain = gain * x.run.spread(weight.square())
    symmetric = bias is None or not bias.any()
    shift = (common.square() - 2 * common * average) * gain if common.any() else 0.0
    if symmetric:
        return x.through(lambda moments: moments * gain, shift=shift)
    return x.through(
        lambda moments: moments * gain,
        shift=shift + x.run.spread(bias.square()),
        average=lambda: x.run.spread(bias),
        symmetric=False,
    )


@second_moment_rule(F.normalize)
def through_normalize(x, p=2.0, dim=1, eps=1e-12, out=None):
    """Divided by the sum of squares along a dimension."""
    if p != 2 or out is not None:
        raise unsupported(F.normalize, (x,), {}, f"with p={p} or out=")
    x.run.approximate("normalize: the length is taken as constant")
    length = total(x.second(), dim, x.shape[dim])
    return x.through(lambda moments: moments / (length + eps**2))
