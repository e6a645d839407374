"""Beyond the diagonal: how gradients at two positions go together, for small images.

Average pooling adds up positions whose gradients are correlated, and then squares do not just add
up. Here every tensor stands for E[z(p) z(p')] at all pairs of positions. Backwards, equal kernel
taps pair up, and a pair of ReLU gates is open together with the arc-cosine probability of their
correlation in the forward pass (Cho and Saul, 2009). Exact in the limit of wide layers, the image
included; chapter 4 derives it.

An operation without a rule here goes on with the diagonal, and with the rules of
:mod:`pilcro.rules`, which say what they approximate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pilcro.rules.normalisation import check_channels
from pilcro.rules.pooling import pair
from pilcro.second_moments import (
    Run,
    SecondMoment,
    StandIn,
    identity,
    joint_flips,
    own_flips,
    ratio,
    signature,
)

AFFORDABLE = 2**18  # pairs of pixels: with more than 22 x 22 pixels it takes seconds
MANY = 32  # channels that a filter reads: levels of small networks are then within some 5 %
RULES: dict[Callable, Callable] = {}


def covariance_rule(*functions: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated rule; it may return NotImplemented to go on with the diagonal."""

    def register(rule: Callable) -> Callable:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return register


@dataclass(frozen=True)
class Moments:
    """Of a map, for each block of exchangeable channels.

    path: (blocks, h, w, h, w), what the gradient goes back through.
    second: the same shape, E[z(p) z(p')] in the forward pass.
    shared: the same shape, for two independent images.
    average: (blocks, h, w), mean over images and weights.
    """

    path: Tensor
    second: Tensor
    shared: Tensor
    average: Tensor

    def through(self, function: Callable[[Tensor], Tensor]) -> "Moments":
        """Behind an operation that is linear in all of them and leaves no mean."""
        path, second, shared = map(function, (self.path, self.second, self.shared))
        return Moments(path, second, shared, second.new_zeros(second.shape[:3]))


class Covariance(StandIn):
    """Stands in for a map (1, channels, h, w) of the forward pass, and holds its ``Moments``.

    ``widths`` says how many channels each block has. ``sources`` and ``flips`` are those of a
    :class:`SecondMoment`.
    """

    moments: Moments
    widths: tuple[int, ...]
    run: Run
    sources: frozenset
    flips: frozenset
    instead: SecondMoment | None = None  # what an operation without a rule made of it, in place

    @staticmethod
    def __new__(cls, moments: Moments, widths: Sequence[int], run: Run, sources, flips):
        shape = (1, sum(widths), *moments.second.shape[1:3])
        new = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=moments.second.dtype, device=moments.second.device
        )
        new.moments, new.widths, new.run = moments, tuple(widths), run
        new.sources, new.flips = frozenset(sources), frozenset(flips)
        return new

    def __repr__(self) -> str:
        return f"Covariance(shape={tuple(self.shape)})"

    def become(self, moments: Moments, *, symmetric: bool = True) -> "Covariance":
        """The same channels, other moments."""
        flips = self.flips if symmetric else ()
        return Covariance(moments, self.widths, self.run, self.sources, flips)

    def overwrite(self, new: "Covariance") -> "Covariance":
        """In-place operations: whoever else holds this tensor sees the new moments."""
        self.moments, self.sources, self.flips = new.moments, new.sources, new.flips
        return self

    def diagonal_only(self) -> SecondMoment:
        """Forget how positions go together."""
        if self.instead is not None:
            return self.instead
        moments = self.moments

        def spread(maps: Tensor) -> Tensor:
            if len(self.widths) == 1:
                return maps[None]
            return maps.repeat_interleave(torch.tensor(self.widths, device=maps.device), 0)[None]

        return SecondMoment(
            spread(diagonal(moments.path)),
            self.shape,
            self.run,
            self.sources,
            self.flips,
            second=lambda: spread(diagonal(moments.second)),
            correlation=lambda: spread(ratio(diagonal(moments.shared), diagonal(moments.second))),
            average=lambda: spread(moments.average),
        )

    @classmethod
    def answer(cls, function: Callable, args: Sequence, kwargs: dict):
        """The rule of the function here, or that for the diagonal."""
        maps = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, Covariance)}
        rule = RULES.get(function)
        if rule and takes(rule, args, kwargs) and all(x.instead is None for x in maps.values()):
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        # One diagonal for each map, however often the operation names it.
        diagonals = {key: x.diagonal_only() for key, x in maps.items()}
        before = {key: x.moments for key, x in diagonals.items()}
        args, kwargs = tree_map_only(Covariance, lambda x: diagonals[id(x)], (args, kwargs))
        result = function(*args, **kwargs)
        for key, x in diagonals.items():
            if x.moments is not before[key]:  # changed in place: whoever holds the map sees it
                maps[key].instead = x
        return result

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} slipped past the rules for covariances")


def white_noise(image: Tensor, channels: int, run: Run) -> Covariance:
    """An image whose pixels are independent, with these second moments, (height, width)."""
    path = torch.diag_embed(image.flatten()).reshape(1, *image.shape, *image.shape)
    second = path.detach()
    moments = Moments(path, second, torch.zeros_like(second), second.new_zeros(1, *image.shape))
    return Covariance(moments, [channels], run, {"image"}, {"image"})


def takes(rule: Callable, args: Sequence, kwargs: dict) -> bool:
    """Does the rule know these arguments?"""
    try:
        signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def diagonal(pairs: Tensor) -> Tensor:
    """(blocks, h, w, h, w) at p = p', as (blocks, h, w)."""
    return pairs.diagonal(dim1=1, dim2=3).diagonal(dim1=1, dim2=2)


def on_both(function: Callable[[Tensor], Tensor], pairs: Tensor) -> Tensor:
    """A linear ``function`` of maps (batch, 1, h, w), applied to p' and then to p."""
    for _ in range(2):
        blocks, *here = pairs.shape[:3]
        out = function(pairs.reshape(-1, 1, *pairs.shape[3:]))
        pairs = out.reshape(blocks, *here, *out.shape[2:]).permute(0, 3, 4, 1, 2)
    return pairs


# --- the rules -----------------------------------------------------------------------------------


@covariance_rule(F.conv2d)
def through_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Equal kernel taps pair up: the sum over taps t of the moments at (s o + t, s o' + t)."""
    if groups > 1 and len(x.widths) > 1:
        return NotImplemented
    return behind_kernels(x, weight, bias, len(weight), stride, padding, dilation, groups)


def behind_kernels(
    x: Covariance,
    weight: Tensor,
    bias: Tensor | None,
    width: int,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int = 1,
    together: Tensor | float = 1.0,
):
    """Behind independent kernels, the last three dimensions of ``weight``, of which those at two
    positions have the share ``together`` (h, w, h, w) in common; ``width`` channels come out."""
    if identity(weight) not in x.run.parameters:
        return NotImplemented
    channels = weight.shape[-3]
    if x.shape[1] != channels * groups:
        raise RuntimeError(f"expected {channels * groups} channels, got {x.shape[1]}")
    if channels < MANY:
        x.run.approximate(
            f"filters of {channels} channels: covariances are exact in the limit of many, "
            "in which what one pixel does to several gates averages out"
        )
    square = x.run.squared(weight).flatten()[0]
    widths = [width / groups for width in x.widths]
    paddings = (padding, padding) if isinstance(padding, str) else pair(padding)
    taps = list(zip(weight.shape[-2:], pair(stride), paddings, pair(dilation), strict=True))

    def pairs(moments: Tensor) -> Tensor:
        total = sum(width * block for width, block in zip(widths, moments, strict=True)) * square
        rows = along_one_axis(total.permute(1, 3, 0, 2), *taps[0])  # (w, w', h, h')
        both = along_one_axis(rows.permute(2, 3, 0, 1), *taps[1])  # (h, h', w, w')
        return both.permute(0, 2, 1, 3)[None] * together

    moments = x.moments.through(pairs)
    if bias is not None:
        shift = x.run.spread(bias.square())
        moments = replace(moments, second=moments.second + shift, shared=moments.shared + shift)
    key = identity(weight)
    return Covariance(moments, [width], x.run, x.sources | {key}, {key})


def along_one_axis(pairs: Tensor, kernel: int, stride: int, padding: int | str, dilation: int):
    """Sum over the taps of one axis, (batch, batch, n, n): a convolution with ones where both taps
    are the same."""
    same = torch.eye(kernel, dtype=pairs.dtype, device=pairs.device)[None, None]
    out = F.conv2d(pairs.flatten(0, 1)[:, None], same, None, stride, padding, dilation)
    return out.reshape(*pairs.shape[:2], *out.shape[2:])


@covariance_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Gates at two positions are open together with the probability that two correlated normal
    numbers are both positive."""
    if not x.flips:
        return NotImplemented
    deviation = diagonal(x.moments.second).clamp_min(1e-300).sqrt()
    both = deviation[:, :, :, None, None] * deviation[:, None, None]
    angle = (x.moments.second / both).clamp(-1, 1).acos()
    apart = (x.moments.shared / both).clamp(-1, 1).acos()
    new = x.become(
        Moments(
            x.moments.path * ((math.pi - angle) / (2 * math.pi)),
            both * arc_cosine(angle),
            both * arc_cosine(apart),
            deviation / math.sqrt(2 * math.pi),
        ),
        symmetric=False,
    )
    return x.overwrite(new) if inplace else new


def arc_cosine(angle: Tensor) -> Tensor:
    """E[relu(u) relu(v)] for standard normal u, v with correlation cos(angle)."""
    return (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)


@covariance_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


@covariance_rule(F.batch_norm)
def through_batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """gamma^2 / variance; in train mode the mean over batch and positions is taken out."""
    check_channels(x, running_var if weight is None else weight)
    shift = 0.0 if bias is None else x.run.spread(bias.square())
    if not training:
        if running_mean.any() or shift:
            return NotImplemented
        square = 1.0 if weight is None else weight.square()
        gain = x.run.spread(square / (running_var + eps))
        return x.become(x.moments.through(lambda moments: moments * gain))
    if shift or not x.flips:
        return NotImplemented
    gain = 1.0 if weight is None else x.run.spread(weight.square())
    x.run.approximate("batch norm in train mode: batch statistics are taken as constants")
    second, shared = x.moments.second, x.moments.shared
    row = shared.mean((3, 4), keepdim=True)
    common = row + row.permute(0, 3, 4, 1, 2) - shared.mean((1, 2, 3, 4), keepdim=True)
    variance = diagonal(second - common).mean((1, 2)).reshape(-1, 1, 1, 1, 1)
    gain = gain / (variance + eps)
    return x.become(
        Moments(
            x.moments.path * gain,
            (second - common) * gain,
            (shared - common) * gain,
            torch.zeros_like(x.moments.average),
        )
    )


@covariance_rule(F.dropout)
def through_dropout(x, p=0.5, training=True, inplace=False):
    """Does nothing in evaluation mode."""
    return NotImplemented if training and p else x


@covariance_rule(F.avg_pool2d)
def through_avg_pool(x, *args, **kwargs):
    return through_linear_map(F.avg_pool2d, x, *args, **kwargs)


@covariance_rule(F.adaptive_avg_pool2d)
def through_adaptive_avg_pool(x, output_size):
    return through_linear_map(F.adaptive_avg_pool2d, x, output_size)


@covariance_rule(F.pad)
def through_pad(x, pad, mode="constant", value=None):
    """The modes that repeat pixels make positions that are equal."""
    return NotImplemented if value or len(pad) > 4 else through_linear_map(F.pad, x, pad, mode)


@covariance_rule(torch.mean, torch.Tensor.mean)
def through_mean(x, dim=None, keepdim=False, *, dtype=None):
    """Over all positions: global average pooling."""
    if not isinstance(dim, Sequence) or sorted(d % 4 for d in dim) != [2, 3]:
        return NotImplemented
    pooled = through_linear_map(F.adaptive_avg_pool2d, x, 1)
    return pooled if keepdim else torch.flatten(pooled, 1)


def through_linear_map(function: Callable, x: Covariance, *args, **kwargs) -> Covariance:
    """Averages and padding act at both positions."""

    def act(maps: Tensor) -> Tensor:
        return function(maps, *args, **kwargs)

    moments = x.moments.through(lambda pairs: on_both(act, pairs))
    return x.become(replace(moments, average=act(x.moments.average[:, None])[:, 0]))


@covariance_rule(torch.Tensor.contiguous, torch.Tensor.clone, torch.Tensor.to, torch.Tensor.float)
def through_copy(x, *args, **kwargs):
    return x.become(x.moments)


@covariance_rule(torch.add, torch.Tensor.add, torch.Tensor.__add__)
def through_add(x, other, *, alpha=1):
    """The moments of branches add up if a change of sign of one is none of the other."""
    maps = isinstance(x, Covariance) and isinstance(other, Covariance)
    if not maps or x is other or x.shape != other.shape or x.widths != other.widths:
        return NotImplemented
    if not own_flips(x, other):
        return NotImplemented
    one, two = x.moments, other.moments
    moments = Moments(
        one.path + alpha**2 * two.path,
        one.second + alpha**2 * two.second,
        one.shared + alpha**2 * two.shared,
        one.average + alpha * two.average,
    )
    sources = x.sources | other.sources
    return Covariance(moments, x.widths, x.run, sources, joint_flips([x, other]))


@covariance_rule(torch.Tensor.add_, torch.Tensor.__iadd__)
def through_add_(x, other, *, alpha=1):
    new = through_add(x, other, alpha=alpha)
    return new if new is NotImplemented else x.overwrite(new)


@covariance_rule(torch.cat, torch.concat, torch.concatenate)
def through_cat(tensors, dim=0):
    """Blocks of channels side by side."""
    if dim % 4 != 1 or not all(isinstance(part, Covariance) for part in tensors):
        return NotImplemented
    parts = [part.moments for part in tensors]
    moments = Moments(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("path", "second", "shared", "average")
        )
    )
    widths = [width for part in tensors for width in part.widths]
    sources = frozenset().union(*(part.sources for part in tensors))
    return Covariance(moments, widths, tensors[0].run, sources, joint_flips(tensors))
