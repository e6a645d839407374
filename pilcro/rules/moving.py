"""Entries change place, branches are added, multiplied, joined; nothing else happens to them."""

import math
from collections.abc import Callable, Iterable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.second_moments import (
    SecondMoment,
    Thunk,
    joint_flips,
    matched,
    moments_among,
    own_flips,
    ratio,
    second_moment_rule,
    unsupported,
    written,
)


@second_moment_rule(F.pad)
def through_pad(x, pad, mode="constant", value=None):
    """Padding with a constant adds no dependence; the other modes repeat pixels."""
    shape, grows = list(x.shape), set()
    for i, d in enumerate(reversed(range(x.ndim))):
        before, after = (*pad, *[0] * 2 * x.ndim)[2 * i : 2 * i + 2]
        if before or after:
            shape[d] += before + after
            grows.add(d)

    def padded(values: Tensor, constant: float = 0.0) -> Tensor:
        full = written(values, x.shape) if 1 in grows else values
        full = full.expand([size if d in grows else -1 for d, size in enumerate(x.shape)])
        return F.pad(full, pad, mode, constant) if mode == "constant" else F.pad(full, pad, mode)

    def first() -> Tensor:
        return padded(written(average(), x.shape), value) if value or average().any() else average()

    value = value or 0.0
    average = x.average
    shift = padded(torch.zeros_like(x.second()), value**2) if value else 0.0
    return x.through(padded, shape, shift=shift, average=first, symmetric=not value)


def through_move(function: Callable, x: SecondMoment, *args, **kwargs):
    """The same move of the moments; some moves give several parts."""

    @cache  # the parts share one move, forwards and back
    def move(values: Tensor) -> Tensor | tuple[Tensor, ...]:
        return function(written(values, x.shape), *args, **kwargs)

    parts = move(x.moments)
    if isinstance(parts, Tensor):
        return moved(x, move, parts.shape)
    return tuple(
        moved(x, lambda values, i=i: move(values)[i], part.shape) for i, part in enumerate(parts)
    )


def moved(x: SecondMoment, move: Callable[[Tensor], Tensor], shape: torch.Size) -> SecondMoment:
    def once(values: Tensor) -> Tensor:
        return once_each(move(values))

    def once_if_many(value: Thunk) -> Thunk:
        return lambda: once(value()) if value().ndim else value()

    new = x.through(
        once,
        tuple(shape),
        correlation=once_if_many(x.correlation),
        average=once_if_many(x.average),
    )
    new.is_view = x.is_view = True
    return new


def once_each(values: Tensor) -> Tensor:
    """Keep one of the entries that a move has left to be one number in memory."""
    for d, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if size > 1 and stride == 0:
            values = values.narrow(d, 0, 1)
    return values


for name in (
    "chunk",
    "expand",
    "flatten",
    "flip",
    "movedim",
    "permute",
    "reshape",
    "roll",
    "select",
    "split",
    "squeeze",
    "swapaxes",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "__getitem__",
):
    method = getattr(torch.Tensor, name)
    functions = {method, getattr(torch, name, method)}
    second_moment_rule(*functions)(partial(through_move, method))
# a view may need a copy where equal channels are stored once
second_moment_rule(torch.Tensor.view)(partial(through_move, torch.Tensor.reshape))


@second_moment_rule(torch.clone, torch.Tensor.clone)
def through_copy(x, *args, **kwargs):
    """The same moments."""
    return x.through(lambda moments: moments, average=x.average)


@second_moment_rule(torch.Tensor.contiguous, torch.Tensor.to, torch.Tensor.float)
def through_conversion(x, *args, **kwargs):
    """Another layout, type or device, the same moments (which keep theirs); where there is nothing
    to convert, PyTorch gives back the same tensor."""
    new = through_copy(x)
    new.is_view = x.is_view = True
    return new


@second_moment_rule(torch.Tensor.new_zeros)
def through_new_zeros(x, *size, **kwargs):
    """Takes nothing from the tensor but its type and device."""
    return x.moments.new_zeros(*size, **kwargs)


@second_moment_rule(
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, joins=True
)
def through_add(x, other, *, alpha=1):
    """Second moments of branches add up if a change of sign of one is none of the other."""
    if not isinstance(x, SecondMoment):  # constant + alpha * tensor
        return through_add(other if alpha == 1 else through_mul(other, alpha), x)
    if not isinstance(other, SecondMoment):
        return plus_constant(x, torch.as_tensor(other), alpha)
    shape = torch.broadcast_shapes(x.shape, other.shape)
    if x is other:  # the same tensor twice is a scaling, not two branches
        return through_mul(x, 1 + alpha)
    if not own_flips(x, other):
        x.run.approximate("addition: branches share their last weights, squares do not just add up")
    x2, y2 = x.second, other.second
    x1, y1 = x.average, other.average
    xr, yr = x.correlation, other.correlation
    # parts that are both positive on average, say, make more than the sum of their squares
    means = 0.0 if x.flips or other.flips else 2 * alpha * x1() * y1()

    def plus(one: Tensor, two: Tensor) -> Tensor:
        one, two = matched(one, two)
        return one + alpha**2 * two + means

    def shared() -> Tensor:
        if isinstance(means, float) and not (xr().any() or yr().any()):
            return xr().new_zeros(())  # one number keeps what follows cheap
        return ratio(plus(xr() * x2(), yr() * y2()), plus(x2(), y2()))

    return SecondMoment(
        plus(x.moments, other.moments),
        shape,
        x.run,
        x.sources | other.sources,
        joint_flips([x, other]),
        second=lambda: plus(x2(), y2()),
        correlation=shared,
        average=lambda: sum(matched(x1(), alpha * y1())),
    )


def plus_constant(x: SecondMoment, shift: Tensor, alpha: float | int = 1) -> SecondMoment:
    """A constant shifts the mean, which images share, and leaves the gradient alone."""
    # A mask: far below is as good, and its square is a number.
    if shift.is_floating_point() and shift.isneginf().any():
        shift = shift.clamp_min(-1e4)
    first, square = x.run.constant(shift, x)
    before = x.average
    return x.through(
        lambda moments: moments,
        torch.broadcast_shapes(x.shape, shift.shape),
        shift=square * alpha**2 + 2 * alpha * first * before(),
        average=lambda: before() + alpha * first,
        symmetric=not shift.any(),
    )


@second_moment_rule(torch.sub, torch.Tensor.sub, torch.Tensor.__sub__, joins=True)
def through_sub(x, other, *, alpha=1):
    return through_add(x, other, alpha=-alpha)


@second_moment_rule(torch.rsub, torch.Tensor.__rsub__, joins=True)
def through_rsub(x, other, *, alpha=1):
    return through_sub(other, x, alpha=alpha)


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
    factor = torch.as_tensor(other)
    if factor.numel() > 1 and not x.run.holds(factor):
        x.run.approximate("product with a tensor that is not a parameter: taken as it is")
    first, square = x.run.constant(factor, x)
    shape = torch.broadcast_shapes(x.shape, factor.shape)
    return x.through(lambda moments: moments * square, shape, average=times(x.average, first))


def times(average: Thunk, factor: Tensor) -> Thunk:
    return lambda: average() * factor if average().any() else average()


def through_product(x: SecondMoment, gate: SecondMoment) -> SecondMoment:
    """Both factors carry gradients: the product rule is autograd's."""
    x.run.approximate("product: its factors are taken to be independent")
    pairs = [(x.second, gate.second), (x.correlation, gate.correlation), (x.average, gate.average)]
    second, correlation, average = (lambda a=a, b=b: multiply(a(), b()) for a, b in pairs)
    return SecondMoment(
        multiply(x.moments, gate.moments),
        torch.broadcast_shapes(x.shape, gate.shape),
        x.run,
        x.sources | gate.sources,
        own_flips(x, gate),
        second=second,
        correlation=correlation,
        average=average,
    )


def multiply(x: Tensor, y: Tensor) -> Tensor:
    return math.prod(matched(x, y))


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
    like = moments_among(tensors)[0]
    parts = [part if isinstance(part, SecondMoment) else constant(part, like) for part in tensors]
    dim %= like.ndim
    shape = list(like.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    # Entries that are equal in all parts stay one; of channels, those of a common block size.
    kept = [all(part.moments.shape[d] == 1 for part in parts) for d in range(like.ndim)]
    sizes = [part.shape[1] // part.moments.shape[1] for part in parts]
    block = math.gcd(*sizes) if dim == 1 else 1

    def spread(values: Tensor, part: SecondMoment) -> Tensor:
        sizes = [1 if one else size for one, size in zip(kept, part.shape, strict=True)]
        sizes[dim] = part.shape[dim]
        if dim == 1:
            sizes[1] //= block
            if values.ndim > 1 and values.shape[1] > sizes[1]:  # channels of a block are alike
                values = values.unflatten(1, (sizes[1], -1)).mean(2)
        return written(values, sizes)

    def join(values: Iterable[Tensor]) -> Tensor:
        return torch.cat([spread(v, part) for v, part in zip(values, parts, strict=True)], dim)

    seconds, rhos, averages = zip(
        *((part.second, part.correlation, part.average) for part in parts), strict=True
    )
    return SecondMoment(
        join([part.moments for part in parts]),
        shape,
        like.run,
        frozenset().union(*(part.sources for part in parts)),
        joint_flips(parts),
        second=lambda: join([second() for second in seconds]),
        correlation=lambda: same([rho() for rho in rhos], join),
        average=lambda: same([average() for average in averages], join),
    )


def same(values: list[Tensor], join: Callable[[Iterable[Tensor]], Tensor]) -> Tensor:
    """One number if there is only one, else joined."""
    if all(value.ndim == 0 and value == values[0] for value in values):
        return values[0]
    return join(values)


def constant(value: Tensor, like: SecondMoment) -> SecondMoment:
    """A tensor that does not depend on the image, a class token say: images share all of it."""
    first, square = like.run.constant(value, like)
    one = torch.ones((), dtype=square.dtype, device=square.device)
    return SecondMoment(
        square,
        value.shape,
        like.run,
        (),
        (),
        second=lambda: square,
        correlation=lambda: one,
        average=lambda: first,
    )
